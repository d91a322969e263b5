// The CUDA kernels without Python and without torch: some steps on random data, beside the same in plain loops.
//
// It trains the α of a small table by update=true, in one launch a step and one for the loss, and checks losses and α
// against double arithmetic in which every row is updated at every step. Prints OK, or what differs.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../kernels.h"

namespace {

using namespace fastac::cuda;

constexpr int kSamples = 500, kClasses = 100, kBatch = 64, kSteps = 30, kWindow = 64, kBlocks = 8;
constexpr double kLr = 0.5, kMomentum = 0.9, kDecay = 1e-2;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

// Memory on the device, of n elements that begin as zeros.
template <class T>
struct Buffer {
  size_t n;
  T* p = nullptr;

  explicit Buffer(size_t n_) : n(n_) {
    check(cudaMalloc((void**)&p, sizeof(T) * n));
    check(cudaMemset(p, 0, sizeof(T) * n));
  }
  ~Buffer() { cudaFree(p); }
  Buffer(const Buffer&) = delete;
  void put(const std::vector<T>& values) {
    check(cudaMemcpy(p, values.data(), sizeof(T) * n, cudaMemcpyHostToDevice));
  }
  std::vector<T> get() const {
    std::vector<T> values(n);
    check(cudaMemcpy(values.data(), p, sizeof(T) * n, cudaMemcpyDeviceToHost));
    return values;
  }
};

// α as one dense parameter of SGD with momentum.
struct Dense {
  std::vector<double> alpha = std::vector<double>(kSamples * kClasses), momentum = alpha, gradient = alpha;

  double loss(const std::vector<float>& logits, const std::vector<int64_t>& target, const std::vector<int64_t>& index) {
    gradient.assign(alpha.size(), 0);
    double total = 0;
    for (int i = 0; i < kBatch; ++i) {
      const double* a = &alpha[index[i] * kClasses];
      double sum = 0;
      for (int k = 0; k < kClasses; ++k) sum += std::exp(logits[i * kClasses + k] + a[k]);
      total += std::log(sum) - logits[i * kClasses + target[i]] - a[target[i]];
      for (int k = 1; k < kClasses; ++k)  // α of the first class stays zero
        gradient[index[i] * kClasses + k] +=
            (std::exp(logits[i * kClasses + k] + a[k]) / sum - (k == target[i])) / kBatch;
    }
    return total / kBatch;
  }

  void step() {
    for (size_t j = 0; j < alpha.size(); ++j) {
      momentum[j] = kMomentum * momentum[j] + gradient[j] + kDecay * alpha[j];
      alpha[j] -= kLr * momentum[j];
    }
  }
};

}  // namespace

int main() {
  Buffer<float> logits(kBatch * kClasses), alpha(kSamples * kClasses), momentum(kSamples * kClasses), loss(1),
      grad(kBatch * kClasses), now(kSamples * kClasses);
  Buffer<int64_t> target(kBatch), index(kBatch), ids(kBatch), flags(2), steps(1), all(kSamples);
  Buffer<int32_t> last(kSamples);
  Buffer<double> within(4 * kWindow), tail(4 * kBlocks), lr(1);
  Buffer<char> workspace(workspace_bytes(kBatch, kSamples, true));
  const auto identities = [](int n) {
    std::vector<double> m(4 * n);
    for (int i = 0; i < n; ++i) m[4 * i] = m[4 * i + 3] = 1;
    return m;
  };
  within.put(identities(kWindow));
  tail.put(identities(kBlocks));
  lr.put({kLr});

  Forward f{};
  f.logits_type = Type::float32;
  f.logits = logits.p;
  f.logits_stride = kClasses;
  f.batch = kBatch;
  f.classes = kClasses;
  f.target = target.p;
  f.index = index.p;
  f.num_samples = kSamples;
  f.reduction = Reduction::mean;
  f.ignore_index = -100;
  f.rows = {Type::float32, alpha.p, momentum.p, last.p, kSamples, kClasses,
            {within.p, tail.p, steps.p, lr.p, kWindow, kBlocks}};
  f.flags = flags.p;
  f.loss = loss.p;
  f.grad = grad.p;
  f.ids = ids.p;
  f.update = true;
  f.sgd = {kMomentum, kDecay, false, false, 0};
  f.grad_output = 1;
  f.workspace = workspace.p;

  Dense dense;
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  double worst = 0;
  for (int step = 0; step < kSteps; ++step) {
    std::vector<float> m(kBatch * kClasses);
    std::vector<int64_t> y(kBatch), d(kBatch);
    for (float& x : m) x = normal(random);
    for (int i = 0; i < kBatch; ++i) y[i] = random() % kClasses, d[i] = random() % kSamples;
    d[kBatch - 1] = d[0];  // a sample twice
    logits.put(m);
    target.put(y);
    index.put(d);
    check(forward(f, nullptr));
    check(advance(f.rows.clock, f.sgd, nullptr, nullptr));
    worst = std::fmax(worst, std::fabs(loss.get()[0] - dense.loss(m, y, d)));
    dense.step();
  }
  std::vector<int64_t> every(kSamples);
  for (int i = 0; i < kSamples; ++i) every[i] = i;
  all.put(every);
  check(read_rows(f.rows, all.p, kSamples, now.p, nullptr));
  const std::vector<float> rows = now.get();
  double largest = 0;
  for (size_t j = 0; j < rows.size(); ++j) {
    worst = std::fmax(worst, std::fabs(rows[j] - dense.alpha[j]));
    largest = std::fmax(largest, std::fabs(dense.alpha[j]));
  }
  const bool good = worst < 1e-5 && largest > 0.01;
  std::printf("%s: largest difference %g, largest α %g\n", good ? "OK" : "WRONG", worst, largest);
  return good ? 0 : 1;
}
