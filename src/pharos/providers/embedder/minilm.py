"""What the local model is. Apart from its code, since whoever only names it need not wait for numpy."""

MODEL_NAME = "minilm-l6-v2"
DIMENSION = 384
MAX_TOKENS = 256  # the length the model was trained on; what is longer is cut
MAX_CHARACTERS = 16_384  # cut before counting tokens, so that a huge word list costs milliseconds
