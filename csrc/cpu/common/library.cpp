// Registration of the CPU ops with PyTorch and the facts about this build.
#include <torch/csrc/stable/library.h>

#include <string>

#include "isa.h"
#include "ops.h"

// Maps (x, grad, query, out; all of local attention but lse) are dense, contiguous or with
// contiguous channels; everything else is contiguous. Callers guarantee consistent, non-empty
// shapes and one dtype.
STABLE_TORCH_LIBRARY(attnops_cpu, m) {
  // x [B, C, H, W] -> out [B, C, S], argmax int32 [B, C, S] = h * W + w (use_max) or [0].
  m.def("pyramid_pool(Tensor x, int[] sizes, bool use_max) -> (Tensor out, Tensor argmax)");
  // grad [B, C, S] -> grad_x [B, C, H, W].
  m.def(
      "pyramid_pool_backward(Tensor grad, Tensor argmax, int height, int width, int[] sizes, "
      "bool use_max, bool channels_last) -> Tensor grad_x");
  // query [B, Ck, N], key [B, Ck, S], value [B, Cv, S], bias [B, S] -> out [B, Cv, N], lse [B, N].
  m.def(
      "anchor_attention(Tensor query, Tensor key, Tensor value, Tensor? bias, float scale) -> "
      "(Tensor out, Tensor lse)");
  // dbias has shape [0] without a bias.
  m.def(
      "anchor_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, "
      "Tensor? bias, Tensor lse, float scale) -> "
      "(Tensor dquery, Tensor dkey, Tensor dvalue, Tensor dbias)");
  // query, key [B, Ck, H, W], value [B, Cv, H, W], two numbers in kernel and dilation ->
  // out [B, Cv, H, W], lse [B, H, W].
  m.def(
      "local_attention(Tensor query, Tensor key, Tensor value, int[] kernel, int[] dilation, "
      "float scale, bool mask) -> (Tensor out, Tensor lse)");
  m.def(
      "local_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor lse, "
      "int[] kernel, int[] dilation, float scale, bool mask) -> "
      "(Tensor dquery, Tensor dkey, Tensor dvalue)");
  // x [B, C, H, W], logits [B, C, h, w] in its layout; the numbers of activation and residual are
  // those of upsample_gate/host.h.
  m.def(
      "upsample_gate(Tensor x, Tensor logits, int activation, bool activation_first, "
      "int residual, float input_weight, bool align_corners) -> Tensor out");
  m.def(
      "upsample_gate_backward(Tensor grad, Tensor x, Tensor logits, int activation, "
      "bool activation_first, int residual, float input_weight, bool align_corners) -> "
      "(Tensor dx, Tensor dlogits)");
  // Maps [B, P, H, W]; affinity [B, groups] float32 or float64.
  m.def(
      "group_attention(Tensor theta, Tensor phi, Tensor g, int groups) -> "
      "(Tensor out, Tensor affinity)");
  m.def(
      "group_attention_backward(Tensor grad, Tensor theta, Tensor phi, Tensor g, "
      "Tensor affinity, int groups) -> (Tensor dtheta, Tensor dphi, Tensor dg)");
  // x [B, D, N] dense, bases [B, D, R] -> bases, coef [B, N, R] and what the backward needs
  // (record 2): past_bases [steps, B, D, R] after every step, past_coef [steps + 2, B, N, R] from
  // the softmax to the result; record 1: the last bases and the coefficients before their last
  // update; record 0: nothing, [0]. The past is in float32, or float64.
  m.def(
      "nmf(Tensor x, Tensor bases, int steps, float inv_t, float eps, bool one_step, int record) "
      "-> (Tensor bases, Tensor coef, Tensor past_bases, Tensor past_coef)");
  m.def(
      "nmf_backward(Tensor x, Tensor bases, Tensor? grad_bases, Tensor? grad_coef, "
      "Tensor past_bases, Tensor past_coef, float inv_t, float eps, bool one_step) -> "
      "(Tensor dx, Tensor dbases)");
  // x [B, C, H, W], taps [C, taps] of the local kernel and of the row and the column of each strip,
  // shifts [C, 1 + 2 strips] in the same order -> out like x.
  m.def(
      "strip_conv(Tensor x, Tensor taps, Tensor shifts, int[] kernel, int[] rows, "
      "int[] columns) -> Tensor out");
  m.def(
      "strip_conv_backward(Tensor grad, Tensor x, Tensor taps, Tensor shifts, int[] kernel, "
      "int[] rows, int[] columns) -> (Tensor dx, Tensor dtaps, Tensor dshifts)");
  // x [B, C, H, W], weight [C, 1, kh, kw], bias [C] -> out like x; dbias [C] also without a bias.
  m.def("depthwise_gelu(Tensor x, Tensor weight, Tensor? bias) -> Tensor out");
  m.def(
      "depthwise_gelu_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias) -> "
      "(Tensor dx, Tensor dweight, Tensor dbias)");
  // scores [B, K, h, w] each, attention_logits [B, S, H, W] or none, all in one layout -> out
  // [B, K, height, width]; packed: the gradients of the maps one after the other, [elements];
  // dlogits [0] without logits. The numbers of reduce are those of merge_scales/host.h.
  m.def(
      "merge_scales(Tensor[] scores, Tensor? attention_logits, int height, int width, int reduce, "
      "bool align_corners) -> Tensor out");
  m.def(
      "merge_scales_backward(Tensor grad, Tensor[] scores, Tensor? attention_logits, int reduce, "
      "bool align_corners) -> (Tensor packed, Tensor dlogits)");
  // logits [B, K, h, w], labels int64 [B, H, W].
  m.def(
      "upsample_argmax(Tensor logits, int height, int width, bool align_corners) -> "
      "Tensor labels");
  // target int64 [B, H, W], loss [B, H, W], statistics [2, B, H, W], both float32 or float64.
  m.def(
      "upsample_cross_entropy(Tensor logits, Tensor target, int ignore_index, "
      "bool align_corners) -> (Tensor loss, Tensor statistics)");
  m.def(
      "upsample_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, "
      "Tensor statistics, int ignore_index, bool align_corners) -> Tensor dlogits");
}

STABLE_TORCH_LIBRARY_IMPL(attnops_cpu, CPU, m) {
  m.impl("pyramid_pool", TORCH_BOX(&attnops::cpu::pyramid_pool));
  m.impl("pyramid_pool_backward", TORCH_BOX(&attnops::cpu::pyramid_pool_backward));
  m.impl("anchor_attention", TORCH_BOX(&attnops::cpu::anchor_attention));
  m.impl("anchor_attention_backward", TORCH_BOX(&attnops::cpu::anchor_attention_backward));
  m.impl("local_attention", TORCH_BOX(&attnops::cpu::local_attention));
  m.impl("local_attention_backward", TORCH_BOX(&attnops::cpu::local_attention_backward));
  m.impl("upsample_gate", TORCH_BOX(&attnops::cpu::upsample_gate));
  m.impl("upsample_gate_backward", TORCH_BOX(&attnops::cpu::upsample_gate_backward));
  m.impl("group_attention", TORCH_BOX(&attnops::cpu::group_attention));
  m.impl("group_attention_backward", TORCH_BOX(&attnops::cpu::group_attention_backward));
  m.impl("nmf", TORCH_BOX(&attnops::cpu::nmf));
  m.impl("nmf_backward", TORCH_BOX(&attnops::cpu::nmf_backward));
  m.impl("strip_conv", TORCH_BOX(&attnops::cpu::strip_conv));
  m.impl("strip_conv_backward", TORCH_BOX(&attnops::cpu::strip_conv_backward));
  m.impl("depthwise_gelu", TORCH_BOX(&attnops::cpu::depthwise_gelu));
  m.impl("depthwise_gelu_backward", TORCH_BOX(&attnops::cpu::depthwise_gelu_backward));
  m.impl("merge_scales", TORCH_BOX(&attnops::cpu::merge_scales));
  m.impl("merge_scales_backward", TORCH_BOX(&attnops::cpu::merge_scales_backward));
  m.impl("upsample_argmax", TORCH_BOX(&attnops::cpu::upsample_argmax));
  m.impl("upsample_cross_entropy", TORCH_BOX(&attnops::cpu::upsample_cross_entropy));
  m.impl("upsample_cross_entropy_backward",
         TORCH_BOX(&attnops::cpu::upsample_cross_entropy_backward));
}

#define ATTNOPS_STRINGIFY(x) #x
#define ATTNOPS_STRING(x) ATTNOPS_STRINGIFY(x)
#if defined(__clang__)
#define ATTNOPS_COMPILER "clang " __clang_version__
#else
#define ATTNOPS_COMPILER "gcc " __VERSION__
#endif

// JSON: what was compiled and what runs. The pointer stays valid.
extern "C" __attribute__((visibility("default"))) const char* attnops_cpu_build_info() {
  static const std::string info =
      std::string("{\"compiler\": \"" ATTNOPS_COMPILER "\", \"isas\": [") +
      attnops::cpu::compiled_isas() + "], \"isa\": \"" +
      attnops::cpu::isa_name(attnops::cpu::current_isa()) +
      "\", \"torch_target_version\": \"" ATTNOPS_STRING(TORCH_TARGET_VERSION) "\"}";
  return info.c_str();
}
