// A decoder as one torch operator, and the products of those that it does not know. Rounded to bf16 where transformers
// rounds. Built on the person's machine by assistant/kernels.py.

#include <torch/library.h>

#include "attention.h"
#include "products.h"

namespace {

using Tensors = std::vector<at::Tensor>;
using Maybes = c10::List<std::optional<at::Tensor>>;

// x (rows, n) over its root mean square, times weight (n)
template <typename Sharing>
void norm(Sharing& team, const uint16_t* x, const uint16_t* weight, float epsilon, int64_t rows, int64_t n, uint16_t* y) {
  team.share(rows, std::max<int64_t>(1, WORTH_A_PIECE / n), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * n; first < end * n; first += n) {
      __m256 squares = _mm256_setzero_ps();
      for (int64_t i = first; i < first + n; i += LANES) {
        const __m256 part = widen8(x + i);
        squares = _mm256_fmadd_ps(part, part, squares);
      }
      const __m256 per_root = _mm256_set1_ps(1.0f / std::sqrt(sum8(squares) / n + epsilon));
      for (int64_t i = 0; i < n; i += LANES) {
        const __m256 normed = rounded8(_mm256_mul_ps(widen8(x + first + i), per_root));
        narrow8(_mm256_mul_ps(widen8(weight + i), normed), y + first + i);
      }
    }
  });
}

// silu(gate) * up, `count` numbers of each
template <typename Sharing>
void silu_times(Sharing& team, const uint16_t* gate, const uint16_t* up, int64_t count, uint16_t* y) {
  const __m256 one = _mm256_set1_ps(1.0f), none = _mm256_setzero_ps();
  team.share(count / LANES, WORTH_A_PIECE / LANES / 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * LANES; i < end * LANES; i += LANES) {
      const __m256 value = widen8(gate + i);
      const __m256 opened = _mm256_div_ps(value, _mm256_add_ps(one, exp8(_mm256_sub_ps(none, value))));
      narrow8(_mm256_mul_ps(rounded8(opened), widen8(up + i)), y + i);
    }
  });
}

enum : size_t { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, LAYERS };

// Read a layer's linear layers. `changes` are, for each adapter, the numbers of its rows, or none for all, and two factors of
// each linear layer of the whole decoder, or none.
class Reader {
 public:
  Reader(const Tensors& w, const Maybes& b, const Maybes& c, int64_t rows, int64_t tokens)
      : weights(w), biases(b), changes(c), stride(1 + 2 * biases.size()) {
    TORCH_CHECK(weights.size() == 3 * biases.size() && biases.size() % LAYERS == 0 && changes.size() % stride == 0,
                "three tensors, a bias and two factors of each linear layer are needed");
    for (size_t at = 0; at < changes.size(); at += stride) marked.push_back(mark(changes[at], rows, tokens));
  }

  // Those from `first` to before `end` of one layer.
  Linears some(size_t layer, size_t first, size_t end) const {
    Linears linears;
    for (size_t n = layer * LAYERS + first; n < layer * LAYERS + end; ++n) {
      Linear linear(weights[3 * n], weights[3 * n + 1], weights[3 * n + 2]);
      const std::optional<at::Tensor> bias = biases[n];
      if (bias) {
        TORCH_CHECK(is_plain(*bias) && bias->numel() == linear.out, "a bias must be (out) in bf16");
        linear.bias = read(*bias);
      }
      for (size_t i = 0; i < marked.size(); ++i) {
        const std::optional<at::Tensor> a = changes[i * stride + 1 + 2 * n], b = changes[i * stride + 2 + 2 * n];
        if (a && b) linear.changes.emplace_back(*a, *b, linear.inner, linear.out, marked[i]);
      }
      linears.add(std::move(linear));
    }
    return linears;
  }

 private:
  const Tensors& weights;
  const Maybes &biases, &changes;
  const size_t stride;
  std::vector<std::vector<uint8_t>> marked;  // rows of each adapter
};

// What so few rows need before they are multiplied takes a thread less time than waiting for others would: each makes it
// for itself. One that comes late may read what is being written for a later part; it finds its own part over then.
constexpr int64_t FEW = 2;

// What rows are multiplied as.
struct Inputs {
  std::vector<uint16_t> normed, mixed;
  Activations narrow, heads, wide;

  Inputs(int64_t rows, int64_t hidden, int64_t attended, int64_t between)
      : normed(rows * hidden), mixed(rows * between), narrow(rows, hidden), heads(rows, attended), wide(rows, between) {}
};

// The tensors of one layer of the decoder.
struct Layer {
  Linears asked, given, opened, closed;  // query, key and value; output; gate and up; down
  const uint16_t *before, *between;      // the weights of its norms
  uint16_t *keys, *values;
};

// A decoder as it is given: its layers read, and all forms checked.
struct Decoder {
  const Reader reader;
  int64_t hidden, attended, between, lows = 0;  // `lows`: the most numbers that adapters make of a row
  Sizes size;
  std::vector<Layer> layers;

  Decoder(const at::Tensor& x, const Tensors& weights, const Maybes& biases, const Maybes& changes, const Tensors& norms,
          const at::Tensor& cosine, const at::Tensor& sine, const Tensors& keys, const Tensors& values,
          const at::Tensor& lengths)
      : reader(weights, biases, changes, x.size(0), x.size(1)), hidden(x.size(2)) {
    TORCH_CHECK(x.numel() && is_plain(x) && lengths.is_contiguous() && lengths.scalar_type() == at::kLong &&
                    lengths.numel() == x.size(0) && !keys.empty() && keys.size() == values.size() &&
                    norms.size() == 2 * keys.size() + 1 && weights.size() == 3 * LAYERS * keys.size(),
                "the forms must be as stated");
    for (size_t n = 0; n < keys.size(); ++n) {
      TORCH_CHECK(is_plain(keys[n]) && is_plain(values[n]) && keys[n].dim() == 4 && keys[n].numel() &&
                      keys[n].sizes() == keys[0].sizes() && values[n].sizes() == keys[0].sizes(),
                  "keys and values must be contiguous bf16 of one form");
      layers.push_back({reader.some(n, QUERY, OUTPUT), reader.some(n, OUTPUT, GATE), reader.some(n, GATE, DOWN),
                        reader.some(n, DOWN, LAYERS), read(norms[2 * n]), read(norms[2 * n + 1]), write(keys[n]),
                        write(values[n])});
    }
    const int64_t width = keys[0].size(3), key_heads = keys[0].size(1);
    attended = layers[0].given.layers[0].inner, between = layers[0].closed.layers[0].inner;
    size = {x.size(0), x.size(1), attended / width, key_heads, width, keys[0].size(2), lengths.const_data_ptr<int64_t>()};
    for (const auto& one : norms) TORCH_CHECK(is_plain(one) && one.numel() == hidden, "a norm must be (hidden) in bf16");
    for (const auto* one : {&cosine, &sine})
      TORCH_CHECK(is_plain(*one) && one->numel() == size.each() * width, "cosine and sine must be (rows, new, width) in bf16");
    for (const auto& layer : layers) check(layer);
    TORCH_CHECK(hidden % LANES == 0 && width % (2 * LANES) == 0 && size.rows <= keys[0].size(0) &&
                    size.heads % key_heads == 0 && attended % width == 0,
                "rows, heads and widths must fit each other");
    for (int64_t row = 0; row < size.rows; ++row)
      TORCH_CHECK(size.before[row] >= 0 && size.before[row] + size.news <= size.room, "there is no room for the new tokens");
  }

 private:
  void check(const Layer& layer) {
    const int64_t narrow = size.key_heads * size.width;
    const auto fits = [](const Linears& linears, int64_t inner, const std::vector<int64_t>& outs) {
      for (size_t n = 0; n < outs.size(); ++n)
        TORCH_CHECK(linears.layers[n].inner == inner && linears.layers[n].out == outs[n], "the layers must fit each other");
    };
    fits(layer.asked, hidden, {attended, narrow, narrow});
    fits(layer.given, attended, {hidden});
    fits(layer.opened, hidden, {between, between});
    fits(layer.closed, between, {hidden});
    for (const auto* linears : {&layer.asked, &layer.given, &layer.opened, &layer.closed})
      lows = std::max(lows, linears->lows);
  }
};

// All layers of a decoder and the norm behind them: norm, attention, norm and gated MLP with silu in each.
// x (rows, new, hidden) bf16; of each layer 7 weights (query, key, value, output, gate, up, down), and biases, and 2 norms;
// cosine and sine (rows, new, width) bf16; keys and values of each layer (room for rows, key heads, room for tokens, width)
// bf16; lengths (rows) int64 before the new tokens -> (rows, new, hidden) bf16; with a head, of which a longer piece is for one
// row, the logits behind the last new token of each row (rows, vocabulary) bf16
at::Tensor decode(const at::Tensor& x, const Tensors& weights, const Maybes& biases, const Maybes& changes,
                  const Tensors& norms, const at::Tensor& cosine, const at::Tensor& sine, const Tensors& keys,
                  const Tensors& values, const at::Tensor& lengths, double scale, double epsilon,
                  const std::optional<at::Tensor>& head_weight, const std::optional<at::Tensor>& head_scales) {
  TORCH_CHECK(x.dim() == 3, "x must be (rows, new, hidden)");
  const Decoder decoder(x, weights, biases, changes, norms, cosine, sine, keys, values, lengths);
  const Sizes& size = decoder.size;
  const int64_t hidden = decoder.hidden, attended = decoder.attended, between = decoder.between, each = size.each();
  std::optional<Head> head;
  if (head_weight && head_scales) head.emplace(*head_weight, *head_scales);
  TORCH_CHECK(!head || (head->inner == hidden && (size.rows == 1 || size.news == 1)), "the head must fit the decoder");
  auto y = head ? at::empty({size.rows, head->out}, x.options()) : at::empty_like(x);
  auto* result = write(y);
  const auto *from = read(x), *c = read(cosine), *s = read(sine);
  std::vector<uint16_t> sum(from, from + each * hidden), answer(each * attended);
  std::vector<std::vector<uint16_t>> made(3);
  made[0].resize(each * std::max(attended, between)), made[1].resize(made[0].size());
  made[2].resize(each * size.key_heads * size.width);
  std::vector<float> low(each * decoder.lows);
  const bool few = each <= FEW;
  std::vector<Inputs> inputs(few ? most_threads() : 1, Inputs(each, hidden, attended, between));
  std::vector<Activations> last(head ? inputs.size() : 0, Activations(size.rows, hidden));
  const int64_t longest = *std::max_element(size.before, size.before + size.rows) + size.news;
  std::vector<Scratch> scratch(most_threads(), Scratch(size.width, longest));
  gather([&](Team& team) {
    Inputs& mine = inputs[few ? team.number : 0];
    // Let what(…) be done by each thread for itself, or by all together.
    const auto prepare = [&](const auto& what) {
      Alone alone;
      if (few) what(alone);
      else what(team);
    };
    // What linear layers make of x, into `made` or, of a single one, added to `sum`.
    const auto apply = [&](const Linears& linears, const Activations& rounded, const uint16_t* given, bool adds) {
      linears.take_in(team, given, each, low);
      linears.multiply(team, rounded, low, [&](size_t which, int64_t row, int64_t o, const uint16_t* sixteen) {
        auto* to = (adds ? sum : made[which]).data() + row * linears.layers[which].out + o;
        if (!adds) std::memcpy(to, sixteen, 16 * sizeof *to);
        for (int64_t i = 0; adds && i < 16; i += LANES)
          narrow8(_mm256_add_ps(widen8(to + i), widen8(sixteen + i)), to + i);
      });
    };
    const auto normed = [&](const uint16_t* weight) {
      prepare([&](auto& who) {
        norm(who, sum.data(), weight, static_cast<float>(epsilon), each, hidden, mine.normed.data());
        mine.narrow.take(who, mine.normed.data());
      });
    };
    for (const auto& layer : decoder.layers) {
      normed(layer.before);
      apply(layer.asked, mine.narrow, mine.normed.data(), false);
      attend(team, size, static_cast<float>(scale), made[0].data(), made[1].data(), made[2].data(), c, s, layer.keys,
             layer.values, scratch, answer.data());
      prepare([&](auto& who) { mine.heads.take(who, answer.data()); });
      apply(layer.given, mine.heads, answer.data(), true);
      normed(layer.between);
      apply(layer.opened, mine.narrow, mine.normed.data(), false);
      prepare([&](auto& who) {
        silu_times(who, made[0].data(), made[1].data(), each * between, mine.mixed.data());
        mine.wide.take(who, mine.mixed.data());
      });
      apply(layer.closed, mine.wide, mine.mixed.data(), true);
    }
    if (!head) return norm(team, sum.data(), read(norms.back()), static_cast<float>(epsilon), each, hidden, result);
    Activations& asked = last[few ? team.number : 0];
    prepare([&](auto& who) {
      const auto* ends = sum.data() + (each - size.rows) * hidden;
      norm(who, ends, read(norms.back()), static_cast<float>(epsilon), size.rows, hidden, mine.normed.data());
      asked.take(who, mine.normed.data());
    });
    head->multiply(team, asked, result);
  });
  return y;
}

}  // namespace

TORCH_LIBRARY(nightschool, library) {
  library.def("linear4(Tensor x, Tensor levels, Tensor scales, Tensor zeros) -> Tensor");
  library.def("linear8(Tensor x, Tensor weight, Tensor scales) -> Tensor");
  library.def("add_low_rank(Tensor(a!) y, Tensor x, Tensor a, Tensor b, Tensor? rows) -> ()");
  library.def(
      "decode(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor?[] changes, Tensor[] norms, Tensor cosine, Tensor sine, "
      "Tensor(a!)[] keys, Tensor(b!)[] values, Tensor lengths, float scale, float epsilon, Tensor? head, "
      "Tensor? head_scales) -> Tensor");
}

TORCH_LIBRARY_IMPL(nightschool, CPU, library) {
  library.impl("linear4", linear4);
  library.impl("linear8", linear8);
  library.impl("add_low_rank", add_low_rank);
  library.impl("decode", decode);
}
