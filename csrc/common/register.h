// Registration of an inner op with PyTorch.
#pragma once

#include <torch/csrc/stable/library.h>

// attnops_<device>::<op> with this schema, which begins at its arguments, for tensors of a dispatch
// key: the function attnops::<device>::<op>, behind which it stands.
#define ATTNOPS_REGISTER(device, key, op, schema)                           \
  STABLE_TORCH_LIBRARY_FRAGMENT(attnops_##device, m) { m.def(#op schema); } \
  STABLE_TORCH_LIBRARY_IMPL(attnops_##device, key, m) {                     \
    m.impl(#op, TORCH_BOX(&attnops::device::op));                           \
  }
