// Schemas of the CUDA inner ops; every file of kernels registers its own implementations.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(attnops_cuda, m) {
  m.def("pyramid_pool(Tensor x, int[] sizes, bool use_max) -> (Tensor, Tensor)");
  m.def(
      "pyramid_pool_backward(Tensor grad, Tensor argmax, int height, int width, int[] sizes, "
      "bool use_max, bool channels_last) -> Tensor");
  m.def(
      "local_attention(Tensor query, Tensor key, Tensor value, int[] kernel, int[] dilation, "
      "float scale, bool mask) -> (Tensor, Tensor)");
  m.def(
      "local_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor lse, "
      "int[] kernel, int[] dilation, float scale, bool mask) -> (Tensor, Tensor, Tensor)");
  m.def(
      "strip_conv(Tensor x, Tensor taps, Tensor shifts, int[] kernel, int[] rows, int[] columns) "
      "-> Tensor");
  m.def(
      "strip_conv_backward(Tensor grad, Tensor x, Tensor taps, Tensor shifts, int[] kernel, "
      "int[] rows, int[] columns) -> (Tensor, Tensor, Tensor)");
}
