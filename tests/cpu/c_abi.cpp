// The CPU library called as csrc/include/scp.h says, without Python, against an evaluation of Phi in float64 as printed.
// Prints the largest error of logits and gradients relative to their largest number; compiled and run by test_c_abi.py.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "scp.h"

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

constexpr int kPositions = 6, kHidden1 = 24, kHidden2 = 20, kChannels = 5, kClasses = 2,
              kOutputs = kClasses * kChannels;

struct Parameters {
  Floats w1, b1, w2, b2, w3, b3, residual;
};

struct Results {
  Doubles logits, features, w1, b1, w2, b2, w3, b3;
};

Floats normal(std::mt19937& random, int count, double scale) {
  std::normal_distribution<double> distribution;
  Floats values(count);
  for (float& value : values) value = float(distribution(random) * scale);
  return values;
}

double relu(double x) { return x > 0 ? x : 0; }

// Adds the logits of samples from first to before last, which share a position map, and their part of the gradients of
// sum(logits * grad_logits), one pixel after another.
void add_samples(Results& results, const Parameters& p, const Floats& x, const Floats& grad_logits,
                 const double* positions, int first, int last, int height, int width) {
  const int pixels = height * width;
  for (int pixel = 0; pixel < pixels; ++pixel) {
    const int i = pixel / width, j = pixel % width;
    double s[kPositions];
    for (int k = 0; k < kPositions; ++k) s[k] = positions[3 * k] * i + positions[3 * k + 1] * j + positions[3 * k + 2];
    double l[kHidden1], z[kHidden2], w[kOutputs], gw[kOutputs] = {}, gz[kHidden2] = {}, gl[kHidden1] = {};
    for (int u = 0; u < kHidden1; ++u) {
      l[u] = p.b1[u];
      for (int k = 0; k < kPositions; ++k) l[u] += double(p.w1[u * kPositions + k]) * s[k];
    }
    for (int k = 0; k < kHidden2; ++k) {
      z[k] = p.b2[k];
      for (int u = 0; u < kHidden1; ++u) z[k] += double(p.w2[k * kHidden1 + u]) * relu(l[u]);
    }
    for (int n = 0; n < kOutputs; ++n) {
      w[n] = double(p.b3[n]) + p.residual[n];
      for (int k = 0; k < kHidden2; ++k) w[n] += double(p.w3[n * kHidden2 + k]) * relu(z[k]);
    }
    for (int b = first; b < last; ++b) {
      for (int n = 0; n < kClasses; ++n) {
        const int y = (b * kClasses + n) * pixels + pixel;
        for (int c = 0; c < kChannels; ++c) {
          const int at = (b * kChannels + c) * pixels + pixel;
          results.logits[y] += w[n * kChannels + c] * x[at];
          results.features[at] += double(grad_logits[y]) * w[n * kChannels + c];
          gw[n * kChannels + c] += double(grad_logits[y]) * x[at];
        }
      }
    }
    for (int n = 0; n < kOutputs; ++n) {
      results.b3[n] += gw[n];
      for (int k = 0; k < kHidden2; ++k) {
        results.w3[n * kHidden2 + k] += gw[n] * relu(z[k]);
        if (z[k] > 0) gz[k] += gw[n] * p.w3[n * kHidden2 + k];
      }
    }
    for (int k = 0; k < kHidden2; ++k) {
      results.b2[k] += gz[k];
      for (int u = 0; u < kHidden1; ++u) {
        results.w2[k * kHidden1 + u] += gz[k] * relu(l[u]);
        if (l[u] > 0) gl[u] += gz[k] * p.w2[k * kHidden1 + u];
      }
    }
    for (int u = 0; u < kHidden1; ++u) {
      results.b1[u] += gl[u];
      for (int k = 0; k < kPositions; ++k) results.w1[u * kPositions + k] += gl[u] * s[k];
    }
  }
}

// Logits and gradients of a batch with one position map, or one for each sample.
Results reference(const Parameters& p, const Floats& x, const Floats& grad_logits, const Doubles& positions, int groups,
                  int batch, int height, int width) {
  const int pixels = height * width;
  Results results{Doubles(batch * kClasses * pixels), Doubles(batch * kChannels * pixels),
                  Doubles(kHidden1 * kPositions),     Doubles(kHidden1),
                  Doubles(kHidden2 * kHidden1),       Doubles(kHidden2),
                  Doubles(kOutputs * kHidden2),       Doubles(kOutputs)};
  for (int g = 0; g < groups; ++g) {
    const double* map = &positions[g * kPositions * 3];
    add_samples(results, p, x, grad_logits, map, g * batch / groups, (g + 1) * batch / groups, height, width);
  }
  return results;
}

double relative_error(const Floats& result, const Doubles& truth) {
  double error = 0, largest = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    error = std::max(error, std::fabs(result[i] - truth[i]));
    largest = std::max(largest, std::fabs(truth[i]));
  }
  return error / largest;
}

// Whether a backward call is refused where one of the pointers that it needs is null.
bool refuses_null(const scp_call& complete) {
  for (size_t pointer :
       {offsetof(scp_call, features.data), offsetof(scp_call, logits.data), offsetof(scp_call, w1),
        offsetof(scp_call, b1), offsetof(scp_call, positions), offsetof(scp_call, w2), offsetof(scp_call, b2),
        offsetof(scp_call, w3), offsetof(scp_call, b3), offsetof(scp_call, residual), offsetof(scp_call, grad_w1),
        offsetof(scp_call, grad_b1), offsetof(scp_call, grad_w2), offsetof(scp_call, grad_b2),
        offsetof(scp_call, grad_w3), offsetof(scp_call, grad_b3)}) {
    scp_call call = complete;
    std::memset(reinterpret_cast<char*>(&call) + pointer, 0, sizeof(void*));
    if (scp_cpu_backward(&call, nullptr, 0) == SCP_BAD_ARGUMENT) continue;
    std::fprintf(stderr, "not refused: a call whose pointer at byte %zu is null\n", pointer);
    return false;
  }
  return true;
}

// Whether a call is refused whose positions have fewer axes than the image.
bool refuses_few_axes(const scp_call& complete) {
  scp_call call = complete;
  call.position_dims = 1;
  if (scp_cpu_forward(&call, nullptr, 0) == SCP_BAD_ARGUMENT) return true;
  std::fprintf(stderr, "not refused: a 2-D call with one position axis\n");
  return false;
}

// The position maps of slices of a volume of 20 slices, which lie askew: (z, i, j) and the distances to the other ends.
// Each next one lies higher, and every other one is mirrored along i.
Doubles position_maps(int groups, double h, double w) {
  Doubles maps;
  for (int g = 0; g < groups; ++g) {
    const double z = 7 + 3 * g, i = g % 2 ? -1 : 1, i0 = g % 2 ? h - 1 : 0;
    for (double value : {0.02, -0.01, z, i, 0., i0, 0., 1., 0., -0.02, 0.01, 20 - z, -i, 0., h - i0, 0., -1., w})
      maps.push_back(value);
  }
  return maps;
}

double check(int threads, int groups, int batch, int height, int width) {
  std::mt19937 random(1);
  const Parameters p{normal(random, kHidden1 * kPositions, 0.5),
                     normal(random, kHidden1, 5),
                     normal(random, kHidden2 * kHidden1, 0.2),
                     normal(random, kHidden2, 2),
                     normal(random, kOutputs * kHidden2, 0.2),
                     normal(random, kOutputs, 0.2),
                     normal(random, kOutputs, 0.3)};
  const int pixels = height * width;
  Floats x = normal(random, batch * kChannels * pixels, 1), grad_logits = normal(random, batch * kClasses * pixels, 1);
  Floats logits(batch * kClasses * pixels), grad_x(batch * kChannels * pixels);
  Floats grad_w1(kHidden1 * kPositions), grad_b1(kHidden1), grad_w2(kHidden2 * kHidden1), grad_b2(kHidden2);
  Floats grad_w3(kOutputs * kHidden2), grad_b3(kOutputs);
  const Doubles positions = position_maps(groups, height, width);

  const auto tensor = [&](Floats& values, int channels) {
    return scp_tensor{values.data(), int64_t(channels) * pixels, pixels, {width, 1, 0}};
  };
  scp_call call{};
  call.spatial_dims = 2, call.position_dims = kPositions / 2, call.dtype = call.compute_dtype = SCP_FLOAT32,
  call.threads = threads;
  call.batch = batch, call.groups = groups, call.channels = kChannels, call.classes = kClasses;
  call.hidden1 = kHidden1, call.hidden2 = kHidden2, call.size[0] = height, call.size[1] = width;
  call.features = tensor(x, kChannels), call.logits = tensor(logits, kClasses);
  call.w1 = p.w1.data(), call.b1 = p.b1.data(), call.positions = positions.data();
  call.w2 = p.w2.data(), call.b2 = p.b2.data(), call.w3 = p.w3.data(), call.b3 = p.b3.data();
  call.residual = p.residual.data();
  char message[256] = "";
  int status = scp_cpu_forward(&call, message, sizeof(message));
  if (status == SCP_OK) {
    call.logits = tensor(grad_logits, kClasses), call.grad_features = tensor(grad_x, kChannels);
    call.grad_w1 = grad_w1.data(), call.grad_b1 = grad_b1.data(), call.grad_w2 = grad_w2.data();
    call.grad_b2 = grad_b2.data(), call.grad_w3 = grad_w3.data(), call.grad_b3 = grad_b3.data();
    status = scp_cpu_backward(&call, message, sizeof(message));
  }
  if (status != SCP_OK) {
    std::fprintf(stderr, "status %d: %s\n", status, message);
    return INFINITY;
  }
  if (!refuses_null(call) || !refuses_few_axes(call)) return INFINITY;
  const Results truth = reference(p, x, grad_logits, positions, groups, batch, height, width);
  return std::max({relative_error(logits, truth.logits), relative_error(grad_x, truth.features),
                   relative_error(grad_w1, truth.w1), relative_error(grad_b1, truth.b1),
                   relative_error(grad_w2, truth.w2), relative_error(grad_b2, truth.b2),
                   relative_error(grad_w3, truth.w3), relative_error(grad_b3, truth.b3)});
}

int main() {
  if (scp_abi_version() != SCP_ABI_VERSION) return 1;
  double worst = 0;
  for (int threads : {1, 2})
    for (auto [groups, batch] : {std::pair{1, 1}, std::pair{1, 3}, std::pair{3, 3}})
      for (int height : {5, 37, 90}) worst = std::max(worst, check(threads, groups, batch, height, height + 4));
  std::printf("%.3g %zu %zu %d\n", worst, sizeof(scp_call), sizeof(scp_cuda_call), int(SCP_REPORT_SIZE));
  return 0;
}
