"""What all tests of the Triton kernels share."""

import pytest

from scp_kernels.backends.triton import interpreting


@pytest.fixture(autouse=True, scope="session")
def language_patched_once_per_kernel():
    """Triton 3.9's interpreter patches its language in each call of a device function, which takes a third of a test's
    time; the kernel around it has done so already.
    """
    if not interpreting():
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def patch_what_is_not(fn):
        modules = [m for m in fn.__globals__.values() if m is language or m is language.core]
        if modules and not any(language.core.is_builtin(m.load) for m in modules):
            return interpreter._LangPatchScope()
        return patch(fn)

    with pytest.MonkeyPatch.context() as change:
        change.setattr(interpreter, "_patch_lang", patch_what_is_not)
        yield
