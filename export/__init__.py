"""From a finished run to .tflite files, each with an operating point of its own.

`export.to_tflite` is the command; docs/export.md says what it writes. TensorFlow is
needed for its converter.
"""
