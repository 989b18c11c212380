"""Models as ONNX files: pixels in, predictions out, compared with what torch predicts."""
