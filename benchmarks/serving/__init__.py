"""Labels of whole networks on a CPU: against OpenVINO, onnxruntime and torch.compile."""
