/* The C ABI of the compiled backends. No torch, no C++: pointers, sizes, a thread count, an error code. */
#ifndef SCP_H
#define SCP_H

#include <stdint.h>

#define SCP_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* Raised with every incompatible change of what is declared here; the loader refuses another number. */
#define SCP_ABI_VERSION 6

enum scp_dtype { SCP_FLOAT64 = 0, SCP_FLOAT32 = 1, SCP_FLOAT16 = 2, SCP_BFLOAT16 = 3 };

enum scp_status {
  SCP_OK = 0,
  SCP_BAD_ARGUMENT = 1, /* the message says which */
  SCP_OUT_OF_MEMORY = 2,
  SCP_UNSUPPORTED = 3, /* this machine lacks what the call asks for */
  SCP_DEVICE_ERROR = 4 /* CUDA's own message */
};

/* Ways to evaluate Phi. */
enum scp_method { SCP_METHOD_AUTO = 0, SCP_METHOD_TREE = 1, SCP_METHOD_DENSE = 2 };

/* A tensor [batch, channels, *spatial], strides in elements; absent where data is null. */
struct scp_tensor {
  void* data;
  int64_t stride_batch;
  int64_t stride_channel;
  int64_t stride_spatial[3];
};

/* One call, forward or backward. Matrices are contiguous and of compute_dtype unless said otherwise. */
struct scp_call {
  int32_t spatial_dims;  /* d, 2 or 3 */
  int32_t position_dims; /* K >= d, axes of positions; CPU only: what CUDA reads does not depend on it */
  int32_t dtype;         /* scp_dtype of features, logits and their gradients */
  int32_t compute_dtype; /* SCP_FLOAT32 or SCP_FLOAT64 */
  int32_t threads;
  int32_t isa_target; /* 0 the best of this machine, else 1 portable, 2 avx2, 3 avx512 */
  int32_t method;     /* scp_method */
  int64_t batch, groups, channels, classes, hidden1, hidden2;
  int64_t size[3]; /* spatial_dims of them */

  struct scp_tensor features;      /* X [B, C, *size] */
  struct scp_tensor logits;        /* forward: Y [B, N, *size], written; backward: its gradient, read */
  struct scp_tensor grad_features; /* backward: gX, written; null data if not wanted */

  /* The first layer. The CPU backend reads it as it is, the CUDA backend as an affine function of the index. */
  const void* w1;             /* CPU: [h1, 2K] */
  const void* b1;             /* CPU: [h1] */
  const double* positions;    /* CPU: position matrix P [G, 2K, d + 1]: S = P . (index, 1) */
  const double* coefficients; /* CUDA: [G, h1, d + 1]: pre-activation = sum over axes c[axis]*index[axis] + c[d] */
  const void* w2;             /* [h2, h1] */
  const void* b2;             /* [h2] */
  const void* w3;             /* [N*C, h2] */
  const void* b3;             /* [N*C] */
  const void* residual;       /* [N*C] */
  const void* bias;           /* [N] or null; forward only */

  /* Gradients, all of them or none (null). */
  void* grad_w1;             /* CPU */
  void* grad_b1;             /* CPU */
  double* grad_coefficients; /* CUDA: [G, h1, d + 1] */
  void* grad_w2;
  void* grad_b2;
  void* grad_w3;
  void* grad_b3;

  double* report; /* [SCP_REPORT_SIZE] or null: what the call did; CUDA: device memory, multiply-adds are added to it */

  int64_t cache_bytes; /* forward: capacity of the weight field cache, which keeps W between calls; 0: not used */
};

/* Entries of `report`. Sums over pixels count every position map; means are theirs to take. */
enum scp_report {
  SCP_REPORT_ISA_TARGET = 0, /* as in scp_call.isa_target */
  SCP_REPORT_DENSE,          /* 1: no tree was built */
  SCP_REPORT_NODES,
  SCP_REPORT_LEAVES,
  SCP_REPORT_PIXELS,
  SCP_REPORT_UNSTABLE1, /* unstable units of layer 1, summed over pixels */
  SCP_REPORT_UNSTABLE2,
  SCP_REPORT_MOST_UNSTABLE1,
  SCP_REPORT_MOST_UNSTABLE2,
  SCP_REPORT_BUILD_MACS,  /* multiply-adds executed in building the tree, and in its adjoint */
  SCP_REPORT_LEAF_MACS,   /* and in evaluating Phi at its leaves, and in the adjoint of that */
  SCP_REPORT_MAPS,        /* distinct position maps */
  SCP_REPORT_FIELD_CACHE, /* scp_field_cache */
  SCP_REPORT_MAPS_READ,   /* position maps whose W was read from the weight field cache */
  SCP_REPORT_SIZE = 16
};

/* What a forward did with the weight field cache: nothing, stored W of some position maps, or only read. */
enum scp_field_cache { SCP_FIELD_CACHE_UNUSED = 0, SCP_FIELD_CACHE_STORED = 1, SCP_FIELD_CACHE_READ = 2 };

SCP_EXPORT int scp_abi_version(void);

/* Bit n set: ISA target n can run on this machine. */
SCP_EXPORT int scp_cpu_isa_targets(void);

/* Both return an scp_status and, unless it is SCP_OK, write a sentence into message[0..message_size). */
SCP_EXPORT int scp_cpu_forward(const struct scp_call* call, char* message, int64_t message_size);
SCP_EXPORT int scp_cpu_backward(const struct scp_call* call, char* message, int64_t message_size);

/* Bytes in the weight field cache, and their release. Both may be called at any time, by any thread. */
SCP_EXPORT int64_t scp_cpu_weight_field_cache_bytes(void);
SCP_EXPORT void scp_cpu_clear_weight_field_cache(void);

/* A call of the CUDA backend. Tensors and workspace are device memory; `threads`, `isa_target`, `method`
   and `cache_bytes` of scp_call are not used. Nothing is allocated, and nothing waits for the device. */
struct scp_cuda_call {
  struct scp_call call;
  int32_t device;
  void* stream;            /* cudaStream_t */
  int32_t multiprocessors; /* of the device: the partition of the work depends on it, hence the order of sums */
  int64_t shared_limit;    /* bytes of shared memory that a block may have on the device */
  void* workspace;         /* aligned to 16 bytes */
  int64_t workspace_bytes; /* at least what scp_cuda_query_requirements says */
  void* scratch_alias; /* backward: memory like the workspace, which may be that of grad_features, or null: scratch that
                          is last read before grad_features is written */
  int64_t scratch_alias_bytes; /* known to scp_cuda_query_requirements too: what fits there takes no workspace */
};

/* CUDA versions (12040 is 12.4) that the driver supports, 0 without a driver, and that the library was built with. */
SCP_EXPORT int scp_cuda_driver(int32_t* driver, int32_t* built_with);

/* What a call needs and how it is launched; a backward is for the gradients that are not null. */
struct scp_cuda_requirements {
  int64_t workspace_bytes;
  /* Bytes of shared memory per block, of the large kernels; FoldSupertiles: 0 if it is not launched. */
  int64_t shared_apply, shared_parameters, shared_supertiles;
  int64_t windows;                         /* of supertiles, each a launch of FoldSupertiles */
  int64_t blocks_apply, blocks_parameters; /* blocks per launch */
  int64_t chunks;                          /* of work items, each a launch of ParameterGradients and one of Collect */
  int64_t unstable_capacity; /* unstable units of layer 1 that a tile has room for: with more it is an overflow tile */
};

/* SCP_UNSUPPORTED if the device's shared memory is too small for the widths. Reads no data and needs no device. */
SCP_EXPORT int scp_cuda_query_requirements(const struct scp_cuda_call* call, int32_t backward,
                                           struct scp_cuda_requirements* requirements, char* message,
                                           int64_t message_size);
SCP_EXPORT int scp_cuda_forward(const struct scp_cuda_call* call, char* message, int64_t message_size);
SCP_EXPORT int scp_cuda_backward(const struct scp_cuda_call* call, char* message, int64_t message_size);

#ifdef __cplusplus
}
#endif

#endif
