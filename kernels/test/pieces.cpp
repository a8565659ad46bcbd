// Runs how the combine kernels' blocks share what there is to merge (sm90/decode_few/pieces.h) on the host, for a test to check.
// In, a case a line:  words of a part, then blocks and four words of 32 bits, a bit for each entry that has parts; or entries, pieces.
// Out, a block a line:  case entry first words
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#define __device__
#define __forceinline__ inline

using std::max;
using std::min;

inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __clz(uint32_t x) { return x == 0 ? 32 : __builtin_clz(x); }
// The nth set bit, from bit 0 on.
inline uint32_t __fns(uint32_t mask, uint32_t, int n) {
  for (uint32_t bit = 0; bit < 32; ++bit) {
    if ((mask >> bit & 1) && --n == 0) return bit;
  }
  return ~0u;
}

#include "../sm90/decode_few/pieces.h"

using namespace flashmla::decode_few;

int main() {
  std::string line;
  for (int number = 0; std::getline(std::cin, line); ++number) {
    std::istringstream in(line);
    std::vector<uint32_t> words;
    int part_words = 0;
    in >> part_words;
    for (uint32_t word; in >> word;) words.push_back(word);
    const auto print = [&](const Piece& piece) { std::printf("%d %d %d %d\n", number, piece.entry, piece.first, piece.words); };
    if (words.size() == 2) {
      for (uint32_t entry = 0; entry < words[0]; ++entry) {
        for (uint32_t piece = 0; piece < words[1]; ++piece) print(piece_of(part_words, entry, piece, words[1]));
      }
    } else {
      for (uint32_t block = 0; block < words[0]; ++block) print(piece_of_active(part_words, &words[1], block, words[0]));
    }
  }
}
