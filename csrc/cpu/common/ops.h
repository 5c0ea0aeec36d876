// The inner ops, as library.cpp registers them. Shapes and layouts: the schemas there.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace attnops::cpu {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor> pyramid_pool(Tensor x, std::vector<int64_t> sizes, bool use_max);

Tensor pyramid_pool_backward(Tensor grad, Tensor argmax, int64_t height, int64_t width,
                             std::vector<int64_t> sizes, bool use_max, bool channels_last);

std::tuple<Tensor, Tensor> anchor_attention(Tensor query, Tensor key, Tensor value,
                                            std::optional<Tensor> bias, double scale);

std::tuple<Tensor, Tensor, Tensor, Tensor> anchor_attention_backward(Tensor grad, Tensor query,
                                                                     Tensor key, Tensor value,
                                                                     std::optional<Tensor> bias,
                                                                     Tensor lse, double scale);

std::tuple<Tensor, Tensor> local_attention(Tensor query, Tensor key, Tensor value,
                                           std::vector<int64_t> kernel,
                                           std::vector<int64_t> dilation, double scale, bool mask);

std::tuple<Tensor, Tensor, Tensor> local_attention_backward(Tensor grad, Tensor query, Tensor key,
                                                            Tensor value, Tensor lse,
                                                            std::vector<int64_t> kernel,
                                                            std::vector<int64_t> dilation,
                                                            double scale, bool mask);

Tensor upsample_gate(Tensor x, Tensor logits, int64_t activation, bool activation_first,
                     int64_t residual, double input_weight, bool align_corners);

std::tuple<Tensor, Tensor> upsample_gate_backward(Tensor grad, Tensor x, Tensor logits,
                                                  int64_t activation, bool activation_first,
                                                  int64_t residual, double input_weight,
                                                  bool align_corners);

std::tuple<Tensor, Tensor> group_attention(Tensor theta, Tensor phi, Tensor g, int64_t groups);

std::tuple<Tensor, Tensor, Tensor> group_attention_backward(Tensor grad, Tensor theta, Tensor phi,
                                                            Tensor g, Tensor affinity,
                                                            int64_t groups);

std::tuple<Tensor, Tensor, Tensor, Tensor> nmf(Tensor x, Tensor bases, int64_t steps, double inv_t,
                                               double eps, bool one_step, int64_t record);

std::tuple<Tensor, Tensor> nmf_backward(Tensor x, Tensor bases, std::optional<Tensor> grad_bases,
                                        std::optional<Tensor> grad_coef, Tensor past_bases,
                                        Tensor past_coef, double inv_t, double eps, bool one_step);

Tensor strip_conv(Tensor x, Tensor taps, Tensor shifts, std::vector<int64_t> kernel,
                  std::vector<int64_t> rows, std::vector<int64_t> columns);

std::tuple<Tensor, Tensor, Tensor> strip_conv_backward(Tensor grad, Tensor x, Tensor taps,
                                                       Tensor shifts, std::vector<int64_t> kernel,
                                                       std::vector<int64_t> rows,
                                                       std::vector<int64_t> columns);

Tensor merge_scales(std::vector<Tensor> scores, std::optional<Tensor> logits, int64_t height,
                    int64_t width, int64_t reduce, bool align_corners);

std::tuple<Tensor, Tensor> merge_scales_backward(Tensor grad, std::vector<Tensor> scores,
                                                 std::optional<Tensor> logits, int64_t reduce,
                                                 bool align_corners);

Tensor depthwise_gelu(Tensor x, Tensor weight, std::optional<Tensor> bias);

std::tuple<Tensor, Tensor, Tensor> depthwise_gelu_backward(Tensor grad, Tensor x, Tensor weight,
                                                           std::optional<Tensor> bias);

Tensor upsample_argmax(Tensor logits, int64_t height, int64_t width, bool align_corners);

std::tuple<Tensor, Tensor> upsample_cross_entropy(Tensor logits, Tensor target,
                                                  int64_t ignore_index, bool align_corners);

Tensor upsample_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor statistics,
                                       int64_t ignore_index, bool align_corners);

}  // namespace attnops::cpu
