"""From a source to the model's own words: beam search, greedy decoding and sampling. For ids:

    model = deltalm_jax.load_model("runs/finetune")
    for hypotheses in generate(model, tokens_BS, beam_size=5):
        hypotheses[0].tokens, hypotheses[0].score

    generation.py     `generate`: any number of sources of any length
    arguments.py      what it is given, checked
    batching.py       which sources are decoded together
    search.py         one batch, as one compiled program
    beam.py           the rules of fairseq, T5X and transformers
    sampling.py       hypotheses drawn at random
    constraints.py    which token may come next
    options.py        what a search is told

And for files of text (`python -m deltalm_jax.generate`):

    job.py                  a file to a file
    flags.py                flags of commands that decode
    texts.py                lines to sources, hypotheses to lines
    resumable_output.py     an output that an ended run goes on with
    vocabulary_masks.py     tokens of a script, or of a text
"""

from deltalm_jax.decoding.arguments import GenerationError, LengthLimit
from deltalm_jax.decoding.batching import Batching
from deltalm_jax.decoding.generation import Generator, Hypothesis, generate
from deltalm_jax.decoding.options import Sampling, SearchOptions

__all__ = [
    "Batching",
    "GenerationError",
    "Generator",
    "Hypothesis",
    "LengthLimit",
    "Sampling",
    "SearchOptions",
    "generate",
]
