// The arithmetic of the upsampled gate on vectors: activations, the product, and their derivatives.
#pragma once

#include "cpu/common/vec.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

template <class C, class V>
ATTNOPS_INLINE V activate(Activation activation, V z) {
  if (activation == Activation::kSigmoid) return C(1) / (C(1) + exp_lanes<C>(-z));
  if (activation == Activation::kRelu) return select(z < C(0), V{}, z);
  return z;
}

// Times the derivative of the activation at z, whose value is g. PyTorch passes gradients through
// the ReLU of NaN.
template <class C, class V>
ATTNOPS_INLINE V activate_backward(Activation activation, V z, V g, V grad) {
  if (activation == Activation::kSigmoid) return grad * ((C(1) - g) * g);
  if (activation == Activation::kRelu) return select(z <= C(0), V{}, grad);
  return grad;
}

template <class C>
struct Blend {
  Activation activation;  // after the resize; identity where it came before
  Residual residual;
  C input_weight;

  explicit Blend(const GateShape& s)
      : activation(s.activation_first ? Activation::kIdentity : s.activation),
        residual(s.residual),
        input_weight(static_cast<C>(s.input_weight)) {}

  template <class V>
  inline __attribute__((always_inline)) V forward(V z, V x) const {
    const V g = activate<C>(activation, z);
    if (residual == Residual::kInput) return g * x + input_weight * x;
    return residual == Residual::kGate ? g * x + g : g * x;
  }

  // Gradients of x and of z.
  template <class V>
  inline __attribute__((always_inline)) void backward(V z, V x, V grad, V& dx, V& dz) const {
    const V g = activate<C>(activation, z);
    dx = residual == Residual::kInput ? grad * g + input_weight * grad : grad * g;
    const V dg = residual == Residual::kGate ? grad * x + grad : grad * x;
    dz = activate_backward<C>(activation, z, g, dg);
  }
};

}  // namespace attnops::cpu::ATTNOPS_ISA
