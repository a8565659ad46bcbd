// Runs the products of the model graph (../model) on the host and compares them with float64, for a test to check.
// In, a case a line:  linear KERNEL n heads o i type vector gap add   (gap: floats between heads)   or   rows KERNEL n i o other type vector gated add
// (other: outputs of the second product; gated: 1 the first, 2 the second, 3 both)   or   experts KERNEL n hidden inner count choices type vector,
// KERNEL few, many or half
// Out, a line a case:  how far the results are apart at most, of the sum of the magnitudes; and words written that are not the kernel's
#include "block.h"  // first: see there

#include <iostream>
#include <random>
#include <sstream>
#include <string>

#include "../model/experts.h"
#include "../model/linear_few.h"
#include "../model/linear_mma.h"

using namespace flashmla;

constexpr float kUntouched = 12345.f;
constexpr int kSpare = 4;  // floats behind each row or result, that no kernel may use

struct Values {
  std::mt19937 random{11};
  std::normal_distribution<float> normal;

  // Rows that start at multiples of 16 bytes where `columns` is one of 4, NaN behind them.
  std::vector<float> rows(int n, int columns, int stride) {
    std::vector<float> out(size_t(n) * stride, NAN);
    for (int r = 0; r < n; ++r) {
      for (int c = 0; c < columns; ++c) out[size_t(r) * stride + c] = normal(random);
    }
    return out;
  }
};

// A matrix as kernels and float64 take it.
struct Matrix {
  std::vector<float> values;
  std::vector<uint16_t> halves;
  int type;

  Matrix(Values& source, size_t size, int type_) : values(size), halves(size), type(type_) {
    for (size_t i = 0; i < size; ++i) {
      values[i] = source.normal(source.random);
      if (type != FLASHMLA_VALUE_BF16) continue;
      halves[i] = uint16_t(__float_as_uint(values[i]) >> 16);
      values[i] = __uint_as_float(uint32_t(halves[i]) << 16);
    }
  }
  const void* address() const { return type == FLASHMLA_VALUE_BF16 ? static_cast<const void*>(halves.data()) : values.data(); }
};

struct Sum {
  double value = 0, magnitude = 0;
  void add(double product) {
    value += product;
    magnitude += std::fabs(product);
  }
};
double apart(float found, const Sum& right) { return std::isnan(found) ? INFINITY : std::fabs(found - right.value) / right.magnitude; }

int over(int a, int b) { return (a + b - 1) / b; }

// What a result adds up to, if it is added to `start`.
Sum dot(const float* x, const float* weight, int i, double start) {
  Sum sum;
  sum.add(start);
  for (int k = 0; k < i; ++k) sum.add(double(x[k]) * weight[k]);
  return sum;
}

bool linear(std::istream& in) {
  std::string kernel;
  int n, heads, o, i, type, vector, gap, add;
  in >> kernel >> n >> heads >> o >> i >> type >> vector >> gap >> add;
  Values source;
  const int x_head = i + gap, out_head = o + gap, x_stride = heads * x_head + kSpare, out_stride = heads * out_head + kSpare;
  std::vector<float> x = source.rows(n, heads * x_head, x_stride);
  const Matrix weight(source, size_t(heads) * o * i, type);
  const float start = add != 0 ? 2.f : 0.f;
  std::vector<float> out(size_t(n) * out_stride, kUntouched);
  for (int r = 0; r < n; ++r) {
    for (int h = 0; h < heads; ++h) {
      for (int c = 0; c < gap; ++c) x[size_t(r) * x_stride + h * x_head + i + c] = NAN;
      for (int c = 0; c < o && add != 0; ++c) out[size_t(r) * out_stride + h * out_head + c] = start;
    }
  }
  const MlaLinearParams p = {x.data(), weight.address(), out.data(), n,     o,   i,       x_stride, x_head,
                             out_stride, out_head,       heads,      type, vector, add, nullptr,  nullptr};
  const auto run = [&](int rows, int outputs, bool rows_first, int threads, auto function) {
    const unsigned tiles = over(n, rows), columns = over(o, outputs);
    block::launch({rows_first ? tiles : columns, rows_first ? columns : tiles, unsigned(heads)}, threads, [&] { function(p); });
  };
  if (kernel == "few_1") run(1, 8, false, 256, linear_few<1, 1>);
  else if (kernel == "few_4") run(4, 16, false, 256, linear_few<4, 2>);
  else if (kernel == "few_8") run(8, 16, false, 256, linear_few<8, 2>);
  else if (kernel == "mma_16x16") run(16, 16, false, 256, linear_mma<1, 2>);
  else if (kernel == "mma_16x32") run(16, 32, false, 256, linear_mma<1, 4>);
  else if (kernel == "mma_32x32") run(32, 32, false, 256, linear_mma<2, 4>);
  else if (kernel == "many") run(kTile, kTile, true, 128, linear_many);
  else if (kernel == "half") run(kTile, kWideTile, true, 256, linear_half);
  else return false;
  double worst = 0;
  int spoiled = 0;
  for (int r = 0; r < n; ++r) {
    for (int c = 0; c < out_stride; ++c) {
      const float found = out[size_t(r) * out_stride + c];
      const int head = c / out_head, column = c % out_head;
      if (head >= heads || column >= o) {
        spoiled += found != kUntouched;
        continue;
      }
      const float* row = x.data() + size_t(r) * x_stride + head * x_head;
      worst = max(worst, apart(found, dot(row, weight.values.data() + (size_t(head) * o + column) * i, i, start)));
    }
  }
  std::cout << worst << ' ' << spoiled << '\n';
  return true;
}

bool rows(std::istream& in) {
  std::string kernel;
  int n, i, outputs[2], type, vector, gated, add;
  in >> kernel >> n >> i >> outputs[0] >> outputs[1] >> type >> vector >> gated >> add;
  if (kernel != "row" && kernel != "mma") return false;
  Values source;
  const std::vector<float> x = source.rows(n, i, i);
  const float start = add != 0 ? 2.f : 0.f;
  std::vector<Matrix> weights, ups;
  std::vector<std::vector<float>> out;
  int blocks[2];
  for (int which = 0; which < 2; ++which) {
    const bool gates = gated >> which & 1;
    weights.emplace_back(source, size_t(outputs[which]) * i, type);
    ups.emplace_back(source, size_t(outputs[which]) * i, type);
    out.emplace_back(size_t(n) * outputs[which] + kSpare, kUntouched);
    if (add != 0 && !gates) std::fill_n(out[which].begin(), size_t(n) * outputs[which], start);
    blocks[which] = over(outputs[which], gates || kernel == "row" ? 8 : 16);
  }
  const auto up = [&](int which) { return gated >> which & 1 ? ups[which].address() : nullptr; };
  const MlaLinearRowsParams p = {x.data(), weights[0].address(), up(0), out[0].data(), weights[1].address(), up(1), out[1].data(), n,   i,
                                 outputs[0], outputs[1],         type,  type,          vector,               blocks[0], add,       0};
  const unsigned grid = unsigned(blocks[0] + blocks[1]);
  if (kernel == "row") block::launch({grid, 1, 1}, 256, [&] { linear_row(p); });
  else block::launch({grid, unsigned(over(n, 16)), 1}, 256, [&] { linear_rows_mma(p); });
  double worst = 0;
  int spoiled = 0;
  for (int which = 0; which < 2; ++which) {
    for (int r = 0; r < n; ++r) {
      for (int j = 0; j < outputs[which]; ++j) {
        const float found = out[which][size_t(r) * outputs[which] + j];
        const size_t at = size_t(j) * i;
        const float *row = x.data() + size_t(r) * i, *weight = weights[which].values.data() + at;
        if ((gated >> which & 1) == 0) {
          worst = max(worst, apart(found, dot(row, weight, i, start)));
          continue;
        }
        const Sum gate = dot(row, weight, i, 0), other = dot(row, ups[which].values.data() + at, i, 0);
        const double activated = gate.value / (1 + std::exp(-gate.value));
        const double size = 1.1 * gate.magnitude * std::fabs(other.value) + other.magnitude * std::fabs(activated);
        worst = max(worst, std::isnan(found) ? INFINITY : std::fabs(found - activated * other.value) / size);
      }
    }
    spoiled += int(kSpare - std::count(out[which].end() - kSpare, out[which].end(), kUntouched));
  }
  std::cout << worst << ' ' << spoiled << '\n';
  return true;
}

bool experts(std::istream& in) {
  std::string kernel;
  int n, hidden, inner, count, choices, type, vector;
  in >> kernel >> n >> hidden >> inner >> count >> choices >> type >> vector;
  Values source;
  const int pairs = n * choices;
  const std::vector<float> x = source.rows(n, hidden, hidden), weights = source.rows(n, choices, choices);
  const size_t results = size_t(n) * hidden, inside = size_t(pairs) * inner, each = size_t(pairs) * hidden;
  std::vector<float> out(results + kSpare, kUntouched), gate(inside + kSpare, kUntouched), up(gate), down(each + kSpare, kUntouched);
  std::fill_n(out.begin(), results, 1.f);
  std::vector<int32_t> ids(pairs), order(pairs), place(pairs);
  const int most_tiles = min(pairs, pairs / kTile + count);
  std::vector<uint4> tiles(most_tiles);
  for (int pair = 0; pair < pairs; ++pair) ids[pair] = int(source.random() % count);
  std::vector<Matrix> matrices;
  for (int i = 0; i < 3 * count; ++i) matrices.emplace_back(source, size_t(hidden) * inner, type);
  std::vector<MlaExpert> table;
  for (int e = 0; e < count; ++e) {
    table.push_back({matrices[3 * e].address(), matrices[3 * e + 1].address(), matrices[3 * e + 2].address(), {type, type, type}, 0});
  }
  MlaExpertParams p = {x.data(),    out.data(),   ids.data(),   weights.data(), table.data(), gate.data(), up.data(),
                       down.data(), order.data(), place.data(), reinterpret_cast<int32_t*>(tiles.data()),
                       n,           hidden,       inner,        choices,        count,        0,           vector,    most_tiles, 0};
  const auto run = [&](unsigned grid_x, unsigned grid_y, int threads, auto function) { block::launch({grid_x, grid_y, 1}, threads, [&] { function(p); }); };
  if (kernel == "few") {
    run(over(inner, kUpOutputs), pairs, 256, expert_up);
    run(over(hidden, kDownOutputs), n, 256, expert_down);
  } else if (kernel == "many" || kernel == "half") {
    const bool wide = kernel == "half";
    const auto tiles_of = [&](int columns) {
      if (wide) run(most_tiles, over(columns, kWideTile), 256, expert_tiles_half);
      else run(most_tiles, over(columns, kTile), 128, expert_tiles);
    };
    run(1, 1, 1024, expert_sort);
    for (p.stage = 0; p.stage < 2; ++p.stage) tiles_of(inner);
    const MlaElementsParams elements = {gate.data(), gate.data(), up.data(), int64_t(pairs) * inner};
    block::launch({unsigned(over(pairs * inner, 1024)), 1, 1}, 256, [&] { silu_mul(elements); });
    tiles_of(hidden);
    run(n, over(hidden, 256), 256, expert_sum);
  } else {
    return false;
  }
  double worst = 0;
  for (int r = 0; r < n; ++r) {
    std::vector<Sum> right(hidden);
    for (Sum& sum : right) sum.add(1);
    for (int c = 0; c < choices; ++c) {
      const Matrix* expert = &matrices[3 * ids[r * choices + c]];
      std::vector<double> middle(inner);
      for (int j = 0; j < inner; ++j) {
        double a = 0, b = 0;
        for (int k = 0; k < hidden; ++k) {
          a += double(x[size_t(r) * hidden + k]) * expert[0].values[size_t(j) * hidden + k];
          b += double(x[size_t(r) * hidden + k]) * expert[1].values[size_t(j) * hidden + k];
        }
        middle[j] = a / (1 + std::exp(-a)) * b;
      }
      for (int j = 0; j < hidden; ++j) {
        for (int k = 0; k < inner; ++k) right[j].add(double(weights[r * choices + c]) * middle[k] * expert[2].values[size_t(j) * inner + k]);
      }
    }
    for (int j = 0; j < hidden; ++j) worst = max(worst, apart(out[size_t(r) * hidden + j], right[j]));
  }
  int spoiled = 0;
  for (const auto* written : {&out, &gate, &up, &down}) spoiled += int(kSpare - std::count(written->end() - kSpare, written->end(), kUntouched));
  std::cout << worst << ' ' << spoiled << '\n';
  return true;
}

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream in(line);
    std::string what;
    in >> what;
    if (!(what == "linear" ? linear(in) : what == "rows" ? rows(in) : what == "experts" && experts(in))) return 1;
  }
}
