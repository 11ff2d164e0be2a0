// Before the tiles: transposes W2 and W3, so that neighbouring threads read neighbouring units, and searches for
// parameters that are not finite.
#ifndef SCP_CUDA_PREPARE_H
#define SCP_CUDA_PREPARE_H

#include "call.h"

namespace scp {
namespace SCP_NAMESPACE {

constexpr int kSquare = 32;
// Blocks that check whatever is not transposed.
constexpr int kFiniteCheckBlocks = 8;

template <class T>
struct Prepare {
  DeviceNetwork<T> net;
  const T* w3;           // [nc, h2]
  T *w2t, *w3t;          // written
  int64_t coefficients;  // their number
  int* not_finite;       // 0 before the launch

  template <class Block>
  SCP_DEVICE void operator()(Block& block) const;

  SCP_HD static int64_t squares(int n) { return (n + kSquare - 1) / kSquare; }
  SCP_HD int64_t blocks() const {
    return squares(net.h2) * squares(net.h1) + squares(net.nc) * squares(net.h2) + kFiniteCheckBlocks;
  }
};

template <class T>
constexpr int64_t kPrepareShared = kSquare * (kSquare + 1) * sizeof(T);

// 0 * x is 0 unless x is infinite or NaN.
template <class T>
SCP_DEVICE bool finite(T x) {
  return x * T(0) == T(0);
}

// Square number `square` of in [rows, columns], transposed.
template <class T, class Block>
SCP_DEVICE bool transpose_square(Block& block, const T* in, T* out, int rows, int columns, int64_t square) {
  T* const transposed = reinterpret_cast<T*>(block.shared());
  const int row = int(square / Prepare<T>::squares(columns)) * kSquare;
  const int column = int(square % Prepare<T>::squares(columns)) * kSquare;
  bool all_finite = true;
  const int r_first = block.thread() / kSquare, c = block.thread() % kSquare;
  constexpr int kRows = kThreads / kSquare;
  T values[kSquare / kRows];  // loaded before any is used: no load waits for another
  SCP_UNROLL
  for (int i = 0; i < kSquare / kRows; ++i) {
    const int r = row + r_first + i * kRows;
    values[i] = r < rows && column + c < columns ? in[int64_t(r) * columns + column + c] : T(0);
  }
  SCP_UNROLL
  for (int i = 0; i < kSquare / kRows; ++i) {
    all_finite = all_finite && finite(values[i]);
    transposed[(r_first + i * kRows) * (kSquare + 1) + c] = values[i];
  }
  block.sync();
  SCP_NO_UNROLL
  for (int i = block.thread(); i < kSquare * kSquare; i += kThreads) {
    const int r = i % kSquare, c = i / kSquare;
    if (row + r < rows && column + c < columns)
      out[int64_t(column + c) * rows + row + r] = transposed[r * (kSquare + 1) + c];
  }
  return all_finite;
}

template <class T>
template <class Block>
SCP_DEVICE void Prepare<T>::operator()(Block& block) const {
  const Prepare& p = *this;
  const int64_t of_w2 = p.squares(p.net.h2) * p.squares(p.net.h1), of_w3 = p.squares(p.net.nc) * p.squares(p.net.h2);
  bool all_finite = true;
  if (block.index() < of_w2) {
    all_finite = transpose_square(block, p.net.w2, p.w2t, p.net.h2, p.net.h1, block.index());
  } else if (block.index() < of_w2 + of_w3) {
    all_finite = transpose_square(block, p.w3, p.w3t, p.net.nc, p.net.h2, block.index() - of_w2);
  } else {
    const int64_t first = (block.index() - of_w2 - of_w3) * kThreads + block.thread(),
                  step = kFiniteCheckBlocks * kThreads;
    SCP_NO_UNROLL
    for (int64_t i = first; i < p.net.h2; i += step) all_finite = all_finite && finite(p.net.b2[i]);
    SCP_NO_UNROLL
    for (int64_t i = first; i < p.net.nc; i += step)
      all_finite = all_finite && finite(p.net.b3[i]) && finite(p.net.residual[i]);
    SCP_NO_UNROLL
    for (int64_t i = first; i < p.coefficients; i += step) all_finite = all_finite && finite(p.net.coefficients[i]);
  }
  if (!all_finite) block.raise(p.not_finite);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
