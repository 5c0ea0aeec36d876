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

}  // namespace attnops::cpu
