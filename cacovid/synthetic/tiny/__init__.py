"""The tiny LLaVA-OneVision of the embedded task: tokenizer, model, training, evaluation.

`python -m cacovid.synthetic.tiny --help` trains it from nothing; the result is stored under
`cacovid/assets/tiny` and loads by the ordinary `from_pretrained`.
"""
