// Host entries of nmf: outputs and the order of the updates.
#include <cstring>
#include <optional>
#include <tuple>

#include "common/register.h"
#include "workspace.h"

namespace attnops::cpu {
namespace {

enum Record : int64_t { kRecordNothing, kRecordLast, kRecordAll };

bool is_half(const Tensor& x) { return x.element_size() == 2; }
int64_t wide_bytes(const Tensor& x) { return is_half(x) ? 4 : x.element_size(); }

// An uninitialised tensor in the type of arithmetic.
Tensor new_history(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  return is_half(like) ? torch::stable::new_empty(like, sizes, ScalarType::Float)
                       : new_output(like, sizes);
}

using Factors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Kernels for tensors of one dtype.
const NmfKernels& kernels_of(const Tensor& x, const Tensor& bases) {
  STD_TORCH_CHECK(x.scalar_type() == bases.scalar_type(), "nmf: expected tensors of one dtype");
  return nmf_kernels_for(dtype_of(x));
}

Factors factorise(const Tensor& x, const Tensor& bases, const NmfShape& shape,
                  const NmfKernels& kernels, int64_t steps, int64_t record) {
  const int64_t batch = x.size(0), rank = shape.rank;
  Tensor out = new_output(bases, {batch, shape.channels, rank});
  Tensor coef = new_output(bases, {batch, shape.positions, rank});
  const bool all = record == kRecordAll, nothing = record == kRecordNothing;
  Tensor past_bases = nothing ? new_history(bases, {0})
                              : new_history(bases, {all ? steps : 1, batch, shape.channels, rank});
  Tensor past_coef = nothing
                         ? new_history(bases, {0})
                         : new_history(bases, {all ? steps + 2 : 1, batch, shape.positions, rank});
  const NmfItems initial(bases), outs(out), coefs(coef);
  const NmfItems bases_kept(past_bases, true), coefs_kept(past_coef, true);

  NmfGroup group(x, kernels, shape, false, steps + 1);
  const int64_t coef_bytes = shape.positions * rank * wide_bytes(bases);
  const bool holds = nothing && is_half(bases);
  const Scratch held = group.for_items(holds ? coef_bytes : 0);
  // The coefficients before update u, where they are kept for the next pass or for the backward.
  auto coef_at = [&](int64_t item, int64_t u) {
    if (holds) return held.at((item - group.first()) * coef_bytes);
    return nothing ? coefs(item) : coefs_kept(item, all ? u : 0);
  };

  group.for_each([&](int64_t) {
    group.run([&](int64_t item, const NmfShare& share) {
      if (share.packed) kernels.pack(shape, share);
      kernels.start(shape, share, initial(item), steps == 0 ? bases_kept(item) : nullptr,
                    steps == 0 ? outs(item) : nullptr);
    });
    for (int64_t u = 0; u <= steps; ++u) {
      const bool last = u == steps;
      group.run([&](int64_t item, const NmfShare& share) {
        NmfCoefStep step;
        step.from = u > 0 ? coef_at(item, u) : nullptr;
        step.initial = all || (last && !nothing) ? coefs_kept(item) : nullptr;
        step.to = all || !last ? coef_at(item, u + 1) : nullptr;
        step.out = last ? coefs(item) : nullptr;
        step.last = last;
        kernels.update_coef(shape, share, step);
      });
      if (last) break;
      const bool done = u + 1 == steps;
      group.run([&](int64_t item, const NmfShare& share) {
        kernels.update_bases(shape, share,
                             all    ? bases_kept(item, u)
                             : done ? bases_kept(item)
                                    : nullptr,
                             done ? outs(item) : nullptr);
      });
    }
  });
  return {out, coef, past_bases, past_coef};
}

Factors nmf(Tensor x, Tensor bases, int64_t steps, double inv_t, double eps, bool /*one_step*/,
            int64_t record) {
  const NmfShape shape = nmf_shape(x, bases, inv_t, eps);
  return factorise(x, bases, shape, kernels_of(x, bases), steps, record);
}
// x [B, D, N] dense, bases [B, D, R] -> bases, coef [B, N, R] and what the backward needs
// (record 2): past_bases [steps, B, D, R] after every step, past_coef [steps + 2, B, N, R] from
// the softmax to the result; record 1: the last bases and the coefficients before their last
// update; record 0: nothing, [0]. The past is in float32, or float64.
ATTNOPS_REGISTER(cpu, CPU, nmf,
                 "(Tensor x, Tensor bases, int steps, float inv_t, float eps, bool one_step, "
                 "int record) -> (Tensor bases, Tensor coef, Tensor past_bases, Tensor past_coef)")

NmfProducts products_of(const NmfShape& shape) {
  if (!shape.channels_inner) return NmfProducts::kFloat;
  if (multiplies_tiles() && shape.channels % kNmfTileChannels == 0) return NmfProducts::kTiles;
  return multiplies_bfloat16() && shape.channels % 2 == 0 ? NmfProducts::kPairs
                                                          : NmfProducts::kFloat;
}

std::tuple<Tensor, Tensor> mixed_nmf(Tensor x, Tensor bases, int64_t steps, double inv_t,
                                     double eps) {
  STD_TORCH_CHECK(
      x.scalar_type() == ScalarType::BFloat16 && bases.scalar_type() == ScalarType::Float,
      "mixed_nmf: expected x in bfloat16 and bases in float32");
  const NmfShape shape = nmf_shape(x, bases, inv_t, eps);
  const NmfKernels& kernels = mixed_nmf_kernels_for(products_of(shape));
  auto [out, coef, past_bases, past_coef] =
      factorise(x, bases, shape, kernels, steps, kRecordNothing);
  return {out, coef};
}
// As nmf, of x in bfloat16, with results in float32; there is no backward.
ATTNOPS_REGISTER(cpu, CPU, mixed_nmf,
                 "(Tensor x, Tensor bases, int steps, float inv_t, float eps) "
                 "-> (Tensor bases, Tensor coef)")

std::tuple<Tensor, Tensor> nmf_backward(Tensor x, Tensor bases, std::optional<Tensor> grad_bases,
                                        std::optional<Tensor> grad_coef, Tensor past_bases,
                                        Tensor past_coef, double inv_t, double eps, bool one_step) {
  const NmfShape shape = nmf_shape(x, bases, inv_t, eps);
  const NmfKernels& kernels = kernels_of(x, bases);
  const int64_t batch = x.size(0), channels = shape.channels, positions = shape.positions;
  STD_TORCH_CHECK(!one_step || grad_coef, "nmf_backward: one_step needs a gradient of coef");
  Tensor dx = shape.channels_inner
                  ? torch::stable::transpose(new_output(x, {batch, positions, channels}), 1, 2)
                  : new_output(x, {batch, channels, positions});
  Tensor dbases = new_output(bases, {batch, channels, shape.rank});
  const NmfItems given(bases), dbases_of(grad_bases), dcoefs(grad_coef), dxs(dx), outs(dbases);
  const NmfItems bases_kept(past_bases, true), coefs_kept(past_coef, true);
  const int64_t steps = one_step ? 0 : past_bases.size(0);

  NmfGroup group(x, kernels, shape, true, one_step ? 0 : steps + 1);
  const int64_t dx_bytes = channels * positions * wide_bytes(x);
  const int64_t coef_bytes = positions * shape.rank * wide_bytes(x);
  const Scratch wide = group.for_items(is_half(x) ? dx_bytes : 0);
  const Scratch state = group.for_items(one_step ? 0 : coef_bytes);
  auto dx_of = [&](int64_t item) {
    return is_half(x) ? wide.at((item - group.first()) * dx_bytes) : dxs(item);
  };
  auto bases_of = [&](int64_t item, int64_t step) -> NmfBases {
    if (step < 0) return {nullptr, nullptr};
    if (step == 0 && !one_step) return {given(item), nullptr};
    return {nullptr, bases_kept(item, one_step ? 0 : step - 1)};
  };

  group.for_each([&](int64_t) {
    group.run([&](int64_t item, const NmfShare& share) {
      if (share.packed) kernels.pack(shape, share);
      kernels.start_backward(shape, share, bases_of(item, steps), bases_of(item, steps - 1),
                             dbases_of(item));
    });
    for (int64_t u = steps; u >= 0 && !one_step; --u) {
      group.run([&](int64_t item, const NmfShare& share) {
        NmfCoefGradient step;
        step.coef = coefs_kept(item, u);
        step.next = coefs_kept(item, u + 1);
        step.grad = dcoefs(item);
        step.state = state.at((item - group.first()) * coef_bytes);
        step.dx = dx_of(item);
        step.first = u == 0;
        step.last = u == steps;
        kernels.coef_backward(shape, share, step);
      });
      group.run([&](int64_t item, const NmfShare& share) {
        if (u == 0)
          kernels.finish_bases(shape, share, outs(item));
        else
          kernels.bases_backward(shape, share, bases_of(item, u - 1), bases_of(item, u - 2));
      });
    }
    group.run([&](int64_t item, const NmfShare& share) {
      if (one_step)
        kernels.one_step_backward(shape, share, coefs_kept(item), dcoefs(item), dx_of(item));
      if (is_half(x)) kernels.finish_x(shape, share, dx_of(item), dxs(item));
    });
  });
  if (one_step)
    std::memset(dbases.mutable_data_ptr(), 0,
                static_cast<size_t>(dbases.numel()) * static_cast<size_t>(dbases.element_size()));
  return {dx, dbases};
}
ATTNOPS_REGISTER(cpu, CPU, nmf_backward,
                 "(Tensor x, Tensor bases, Tensor? grad_bases, Tensor? grad_coef, "
                 "Tensor past_bases, Tensor past_coef, float inv_t, float eps, bool one_step) "
                 "-> (Tensor dx, Tensor dbases)")

}  // namespace
}  // namespace attnops::cpu
