// The parts of a decoder as torch operators: products, and norm, gated MLP and attention around them, each in one go where
// torch takes a dozen small steps, rounded to bf16 where transformers rounds. Built on the person's machine by
// assistant/kernels.py.

#include <torch/library.h>

#include "attention.h"
#include "products.h"

namespace {

// x (…, n) bf16 over its root mean square, times weight (n) bf16
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  TORCH_CHECK(is_plain(x) && is_plain(weight) && weight.dim() == 1 && x.size(-1) == weight.size(0),
              "x must be (…, n) and weight (n)");
  const int64_t n = weight.size(0);
  TORCH_CHECK(n % LANES == 0, "n must be a multiple of 8");
  auto y = at::empty_like(x);
  const auto *from = read(x), *w = read(weight);
  auto* to = write(y);
  at::parallel_for(0, x.numel() / n, std::max<int64_t>(1, WORTH_A_THREAD / n), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * n; first < end * n; first += n) {
      __m256 squares = _mm256_setzero_ps();
      for (int64_t i = first; i < first + n; i += LANES) {
        const __m256 part = widen8(from + i);
        squares = _mm256_fmadd_ps(part, part, squares);
      }
      const __m256 per_root = _mm256_set1_ps(1.0f / std::sqrt(sum8(squares) / n + static_cast<float>(epsilon)));
      for (int64_t i = 0; i < n; i += LANES) {
        const __m256 normed = rounded8(_mm256_mul_ps(widen8(from + first + i), per_root));
        narrow8(_mm256_mul_ps(widen8(w + i), normed), to + first + i);
      }
    }
  });
  return y;
}

// silu(gate) * up, both (…, n) bf16 and products of ours
at::Tensor silu_times(const at::Tensor& gate, const at::Tensor& up) {
  auto y = at::empty_like(gate);
  const auto *g = read(gate), *u = read(up);
  auto* to = write(y);
  const __m256 one = _mm256_set1_ps(1.0f), none = _mm256_setzero_ps();
  at::parallel_for(0, gate.numel() / LANES, WORTH_A_THREAD / LANES, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * LANES; i < end * LANES; i += LANES) {
      const __m256 value = widen8(g + i);
      const __m256 opened = _mm256_div_ps(value, _mm256_add_ps(one, exp8(_mm256_sub_ps(none, value))));
      narrow8(_mm256_mul_ps(rounded8(opened), widen8(u + i)), to + i);
    }
  });
  return y;
}

using Tensors = std::vector<at::Tensor>;
using Maybes = c10::List<std::optional<at::Tensor>>;

// Several linear layers: three tensors of each weight, and what adapters change. `changes` are, for each adapter, the
// numbers of its rows, or none for all, and two factors of each layer, or none.
struct Linears {
  std::vector<Weight4> weights;
  const Maybes &biases, &changes;

  Linears(const Tensors& parts, const Maybes& b, const Maybes& c) : biases(b), changes(c) {
    for (size_t i = 0; i + 2 < parts.size(); i += 3) weights.emplace_back(parts[i], parts[i + 1], parts[i + 2]);
    TORCH_CHECK(weights.size() * 3 == parts.size() && weights.size() == biases.size() &&
                    changes.size() % (1 + 2 * weights.size()) == 0,
                "three tensors, a bias and two factors of each layer are needed");
  }

  // What the layers from `first` to before `end` make of x.
  Tensors operator()(const at::Tensor& x, size_t first, size_t end) const {
    auto ys = multiply(x, {weights.begin() + first, weights.begin() + end});
    for (size_t n = first; n < end; ++n) {
      const std::optional<at::Tensor> bias = biases[n];
      if (bias) ys[n - first].add_(*bias);
      for (size_t at = 0; at < changes.size(); at += 1 + 2 * weights.size()) {
        const std::optional<at::Tensor> rows = changes[at], a = changes[at + 1 + 2 * n], b = changes[at + 2 + 2 * n];
        if (a && b) add_low_rank(ys[n - first], x, *a, *b, rows);
      }
    }
    return ys;
  }
};

// A gated MLP with silu, whose linear layers are gate, up and down.
at::Tensor gated(const at::Tensor& x, const Tensors& weights, const Maybes& biases, const Maybes& changes) {
  const Linears linears(weights, biases, changes);
  TORCH_CHECK(linears.weights.size() == 3, "gate, up and down are needed");
  const auto opened = linears(x, 0, 2);
  return linears(silu_times(opened[0], opened[1]), 2, 3)[0];
}

// Attention with its linear layers query, key, value and output; the rest is as in `attend`.
at::Tensor attention(const at::Tensor& x, const Tensors& weights, const Maybes& biases, const Maybes& changes,
                     const at::Tensor& cosine, const at::Tensor& sine, at::Tensor& keys, at::Tensor& values,
                     const at::Tensor& lengths, double scale) {
  const Linears linears(weights, biases, changes);
  TORCH_CHECK(linears.weights.size() == 4, "query, key, value and output are needed");
  const auto asked = linears(x, 0, 3);
  return linears(attend(asked[0], asked[1], asked[2], cosine, sine, keys, values, lengths, scale), 3, 4)[0];
}

}  // namespace

TORCH_LIBRARY(nightschool, library) {
  library.def("linear4(Tensor x, Tensor levels, Tensor scales, Tensor zeros) -> Tensor");
  library.def("linear8(Tensor x, Tensor weight, Tensor scales) -> Tensor");
  library.def("add_low_rank(Tensor(a!) y, Tensor x, Tensor a, Tensor b, Tensor? rows) -> ()");
  library.def("rms_norm(Tensor x, Tensor weight, float epsilon) -> Tensor");
  library.def("gated(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor?[] changes) -> Tensor");
  library.def(
      "attention(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor?[] changes, Tensor cosine, Tensor sine, "
      "Tensor(a!) keys, Tensor(b!) values, Tensor lengths, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(nightschool, CPU, library) {
  library.impl("linear4", linear4);
  library.impl("linear8", linear8);
  library.impl("add_low_rank", add_low_rank);
  library.impl("rms_norm", rms_norm);
  library.impl("gated", gated);
  library.impl("attention", attention);
}
