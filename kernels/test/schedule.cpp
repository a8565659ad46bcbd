// Runs the decode kernels' own schedule (common/schedule.h) on the host, for a test to check.
// In, a case a line:  tile_rows tiles_per_group workers min_blocks tile_overhead split_by_tile h_q s_q b, b lengths, then b + 1 query
//                     starts or nothing.
// Out, a segment a line:  case group_worker seq group lo hi whole index parts splits first_worker entry  (the last three are -1 but for a
//                         first part)
#include <cstdio>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>

#include "warp.h"

#include "../common/schedule.h"

using namespace flashmla;

// The same from known lengths has to be the same.
void check_known(const MlaDecodeParams& p, const std::vector<int>& lengths, const std::vector<int>& starts, LinePosition at, int worker,
                 int number) {
  int seq_lens[kKnownOfLane] = {}, queries[kKnownOfLane] = {};
  std::vector<uint32_t> words(kKnownLengths);
  for (int s = 0; s < p.batch; ++s) {
    const int s_q = starts.empty() ? p.s_q : starts[s + 1] - starts[s];
    words[s] = known_word(lengths[s], s_q);
    if (s / kKnownOfLane != int(threadIdx.x & 31)) continue;
    seq_lens[s % kKnownOfLane] = lengths[s];
    queries[s % kKnownOfLane] = s_q;
  }
  const LinePosition same = locate(p, seq_lens, queries, worker);
  if (at.seq < p.batch) at.row_start = starts.empty() ? at.seq * p.s_q : starts[at.seq];
  else at.row_start = same.row_start;
  bool right = std::memcmp(&same, &at, sizeof at) == 0;
  SegmentWalk walk(at, worker), known_walk(same, worker);
  const Shapes shapes(p, p.tile_rows);
  for (bool more = true; more;) {
    Segment a = {}, b = {};
    more = walk.next(at, shapes, a);
    right &= known_walk.next(same, KnownShapes{p, words.data()}, b) == more && std::memcmp(&a, &b, sizeof a) == 0;
  }
  if (!right) std::printf("%d differs by known lengths\n", number);
}

int main() {
  std::string line;
  for (int number = 0; std::getline(std::cin, line); ++number) {
    std::istringstream in(line);
    MlaDecodeParams p = {};
    in >> p.tile_rows >> p.tiles_per_group >> p.workers >> p.min_blocks >> p.tile_overhead >> p.split_by_tile >> p.h_q >> p.s_q >> p.batch;
    std::vector<int> lengths(p.batch), starts;
    for (int& length : lengths) in >> length;
    for (int start; in >> start;) starts.push_back(start);
    p.seq_lens = lengths.data();
    p.query_start = starts.empty() ? nullptr : starts.data();
    const int group_workers = p.group_workers = p.workers / p.tiles_per_group, group_rows = p.tile_rows * p.tiles_per_group;
    p.groups = (p.s_q * p.h_q + group_rows - 1) / group_rows;
    warp::run([&](int lane) {
      const Shapes shapes(p, p.tile_rows);
      for (int worker = 0; worker < group_workers; ++worker) {
        const LinePosition at = locate(p, shapes, worker);
        if (p.batch <= kKnownLengths) check_known(p, lengths, starts, at, worker, number);
        SegmentWalk walk(at, worker);
        Segment seg;
        while (walk.next(at, shapes, seg)) {
          if (lane != 0) continue;
          const MlaSplit split = seg.lo == 0 ? describe_split(p, at, seg, worker) : MlaSplit{0, 0, -1, -1, {}};
          const int entry = seg.lo == 0 ? split_index(p, shapes, seg, worker) : -1;
          const PartPlace place = place_of(at, seg, worker);
          std::printf("%d %d %d %d %d %d %d %d %d %d %d %d\n", number, worker, seg.seq, seg.group, seg.lo, seg.hi, seg.whole(), place.index,
                      place.parts, split.splits, split.first_worker, entry);
        }
      }
    });
  }
}
