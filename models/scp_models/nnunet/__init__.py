"""nnU-Net v2 with spatially covariant heads, for its own commands: ``nnUNetv2_train DATASET CONFIGURATION FOLD -tr
nnUNetTrainerSCP``. The modules here need nnU-Net: ``pip install "scp_kernels[nnunet]"``.
"""
