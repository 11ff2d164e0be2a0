#include "first_layer.h"

namespace scp {
namespace {

template <class T>
void make_coefficients(const scp_call& call, double* to) {
  const int64_t d = call.spatial_dims, columns = d + 1, rows = 2 * int64_t(call.position_dims);
  const T *w1 = static_cast<const T*>(call.w1), *b1 = static_cast<const T*>(call.b1);
  for (int64_t g = 0; g < call.groups; ++g) {
    const double* const P = call.positions + g * rows * columns;
    for (int64_t u = 0; u < call.hidden1; ++u, to += columns) {
      for (int64_t a = 0; a < columns; ++a) to[a] = a == d ? double(b1[u]) : 0;
      for (int64_t r = 0; r < rows; ++r) {
        const double weight = w1[u * rows + r];
        for (int64_t a = 0; a < columns; ++a) to[a] += weight * P[r * columns + a];
      }
    }
  }
}

template <class T>
void coefficients_backward(const scp_call& call) {
  const int64_t d = call.spatial_dims, columns = d + 1, rows = 2 * int64_t(call.position_dims);
  T *gw1 = static_cast<T*>(call.grad_w1), *gb1 = static_cast<T*>(call.grad_b1);
  for (int64_t u = 0; u < call.hidden1; ++u) {
    const double* const from = call.grad_coefficients + u * columns;
    const int64_t next_from = call.hidden1 * columns, next_P = rows * columns;
    for (int64_t r = 0; r < rows; ++r) {
      const double* const P = call.positions + r * columns;
      double of_weight = 0;
      for (int64_t g = 0; g < call.groups; ++g)
        for (int64_t a = 0; a < columns; ++a) of_weight += from[g * next_from + a] * P[g * next_P + a];
      gw1[u * rows + r] = T(of_weight);
    }
    double of_bias = 0;
    for (int64_t g = 0; g < call.groups; ++g) of_bias += from[g * next_from + d];
    gb1[u] = T(of_bias);
  }
}

}  // namespace

FirstLayer::FirstLayer(const scp_call& call, ScratchStack& scratch) : call_(call), scope_(scratch) {
  const size_t bytes = size_t(call.groups * call.hidden1 * (call.spatial_dims + 1)) * sizeof(double);
  auto* coefficients = static_cast<double*>(scratch.allocate(bytes));
  if (call.compute_dtype == SCP_FLOAT64) {
    make_coefficients<double>(call, coefficients);
  } else {
    make_coefficients<float>(call, coefficients);
  }
  call_.coefficients = coefficients;
  call_.grad_coefficients = call.grad_w1 == nullptr ? nullptr : static_cast<double*>(scratch.allocate(bytes));
}

void FirstLayer::write_gradients() const {
  if (call_.grad_w1 == nullptr) return;
  if (call_.compute_dtype == SCP_FLOAT64) {
    coefficients_backward<double>(call_);
  } else {
    coefficients_backward<float>(call_);
  }
}

}  // namespace scp
