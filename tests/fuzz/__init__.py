"""Coverage-guided fuzzing of the decoder and of whole server sessions.

targets      what is fuzzed, and the invariants that must hold; needs no fuzzer
__main__     python -m tests.fuzz --minutes N: Hypothesis at a thousand cases, then atheris on each target
corpus/      inputs that reach something no other does; replayed by test_corpus in every `make test`
crashes/     inputs that broke an invariant; one that was understood moves to the corpus
"""
