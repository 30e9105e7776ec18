#!/usr/bin/env bash
# A new user's first minute with the installed package, away from its sources.
set -euo pipefail
for i in $(seq 400); do echo "int f$i(int x) { return x * $i + 1; }"; done >code.c
crystalline train code.c --out models/code --steps 60 --quiet
crystalline info models/code
text=$(crystalline generate models/code --prompt "int f" --max-tokens 30)
echo "$text"
test -n "$text"
crystalline train --out models/code --resume --steps 70 --json | tail -1 | grep -q '"event": "done"'
python - <<'PY'
import crystalline
model = crystalline.load("models/code")
ids = model.tokenizer.encode("int f1(int x) { return x")
print("loss", model.loss(ids), "logits", model.logits(ids).shape)
assert model.loss(ids) < 5
PY
say() { python -c "import crystalline; print(crystalline.$1())"; }
test -f "$(say get_include)/crystalline/kernels.h"
test -f "$(say get_cmake_dir)/crystallineConfig.cmake"
if crystalline train nowhere --out models/x 2>err; then exit 1; else test $? -eq 2; fi
cat err
test "$(wc -l <err)" -eq 1
