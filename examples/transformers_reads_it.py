"""A trained folder is a Hugging Face Llama checkpoint as it stands (needs torch, transformers).

python examples/transformers_reads_it.py models/example
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import crystalline

if len(sys.argv) != 2:
    sys.exit(__doc__)
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
theirs = AutoModelForCausalLM.from_pretrained(folder)
ids = tokenizer("The", return_tensors="pt")
text = tokenizer.decode(theirs.generate(**ids, max_new_tokens=30, do_sample=False)[0])
print("transformers:", text)
print(
    "crystalline: ", "The" + crystalline.load(folder).generate("The", max_tokens=30, temperature=0)
)
