// Who multiplies which positions, and where the rows that they see are laid out.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "host.h"

namespace attnops::cpu {

// Steps [first, last) of an item, and the rows that they see, laid out from element `at` on.
struct Part {
  int64_t first, last;
  LaidOut rows;
  int64_t at;
};

struct Plan {
  std::vector<std::vector<Part>> workers;
  // All workers lay out all rows before they multiply, where they would see more rows of others
  // than of their own.
  bool shares;
  int64_t elements;  // that are laid out

  // With a `stripe` a worker lays out so many rows at a time, in the same place.
  Plan(const ConvolutionShape& s, bool as_it_is, int64_t stripe, int64_t threads) {
    const int64_t steps = s.batch * s.steps(), count = std::min(threads, steps);
    const LaidOut whole = {0, 0, s.height, nullptr}, place = {0, 0, stripe, nullptr};
    shares = !as_it_is && 2 * s.pad() * count > s.batch * s.height;
    elements = shares ? s.batch * whole.elements(s) : 0;
    for (int64_t worker = 0; worker < count; ++worker) {
      std::vector<Part> parts;
      const int64_t end = steps * (worker + 1) / count;
      for (int64_t step = steps * worker / count; step < end;) {
        const int64_t item = step / s.steps(), first = step % s.steps();
        const int64_t last = std::min(first + end - step, s.steps());
        Part part = {first, last, {item, 0, s.height, nullptr}, item * whole.elements(s)};
        if (!shares) {
          part.rows.first = s.first_row(first);
          part.rows.last = s.last_row(last);
          part.at = stripe > 0 ? worker * place.elements(s) : elements;
          elements += as_it_is || stripe > 0 ? 0 : part.rows.elements(s);
        }
        parts.push_back(part);
        step += last - first;
      }
      workers.push_back(std::move(parts));
    }
    elements += count * place.elements(s);
  }
};

}  // namespace attnops::cpu
