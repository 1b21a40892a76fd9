"""Tables of option values that flap refuses, with their error messages.

Each string is a table for one model, with rows of the form `option=value -> message`. The message
is the beginning of the error with which the run ends. Except in the rows of AT_THE_WEIGHTS, the
run ends before it reads any weight. In rows, "…" stands for any text, and {bad} for the folder that
tests/helpers/damaged.py writes. {texts} stands for the names of packaged texts, and {prompts} for
the names of packaged texts and prompts. {long} stands for a name that is too long, and {huge} for a
name of 5,000 characters. Command lines that Hydra cannot compose are in
tests/config/test_bad_command_line.py. Errors that only one class raises are tested in the test file
of that class.
"""

TEXTS = "boolq-passages, hellaswag-passages, sciq-passages, python-code, …, ptb, or a .txt, .jsonl or .parquet file"
WITH_PROMPTS = TEXTS.replace(
    "ptb, or", "ptb, boolq-questions, siqa-questions, repeat-passages, asked-passages, self, or"
)

LLAMA = """
ratio=1.0 -> ratio=1.0: expected a number with 0 <= ratio < 1
ratio=20 -> ratio=20.0: expected a number with 0 <= ratio < 1; 20 % is ratio=0.2
ratio=nan -> ratio=nan: expected a number with 0 <= ratio < 1
ratio=null -> ratio=None: expected a number with 0 <= ratio < 1
ratio=0.99 -> ratio=0.99: 1 KV head and 1 neuron stay …, so this model allows at most 0.858
seed=-1 -> seed=-1: expected a whole number from 0 to 2**32 - 1
seed=4294967296 -> seed=4294967296: expected a whole number from 0 to 2**32 - 1
cache_wait_seconds=-1.0 -> cache_wait_seconds=-1.0: expected a number >= 0
timeout_minutes=0 -> timeout_minutes=0.0: expected a number of minutes above 0 and at most 525600, which is a year
timeout_minutes=nan -> timeout_minutes=nan: expected a number of minutes above 0 and at most 525600, which is a year
timeout_minutes=1e300 -> timeout_minutes=1e+300: expected a number of minutes above 0 and at most 525600, which is a y
cache_dir={huge} -> cache_dir=yyy…: must be at most 3,000 bytes long, but has 5,000 bytes
cache_dir={bad}/short.txt model.placement=stream -> cache_dir={bad}/short.txt: expected a folder that can be
dry_run=true -> dry_run=True: expected false; only the command line prints the estimate of a run
model.tie_copied_head=false -> model.tie_copied_head=false: expected no model.tie_copied_head here, because this model

target.bytes=2e5 ratio=0.3 -> target.bytes=200000: expected ratio=null (it is 0.3)
target.bytes=2e5 target.parameters=3e4 ratio=0 -> target.parameters=30000: expected ratio=null (it is 0.0
target.bytes=0 ratio=null -> target.bytes=0.0: expected a number > 0
target.kv_cache_bytes=1 target.context=0 ratio=null -> target.context=0: expected null or a whole number >= 1
target.bytes=1000 ratio=null -> target.bytes=1000: 1 KV head and 1 neuron stay in every layer, … at least
target.parameters=1000 ratio=null structure=UL-UM -> target.parameters=1000: … at least
target.kv_cache_bytes=1000 ratio=null structure=search -> target.kv_cache_bytes=1000: … at least 32768
target.memory=1e5 target.context=100 target.sequences=0 ratio=null -> target.sequences=0: expected a whole number >= 1
target.memory=1e4 target.sequences=3 ratio=null -> target.memory=10000: 1 KV head and 1 neuron stay …, so … at least 1…
target.active_parameters=0 ratio=null -> target.active_parameters=0.0: expected a number > 0
target.active_parameters=5e3 ratio=null -> target.active_parameters=5000: 1 KV head … at least
target.kv_cache_bytes=3e3 ratio=null structure.min_heads=2 -> target.kv_cache_bytes=3000: 2 KV heads … at least

plan={bad}/layers.json -> plan={bad}/layers.json: it does not fit this model: 3 layers there and 4 here
plan={bad}/wider.json -> plan={bad}/wider.json: it does not fit this model: layer 0 has 64 neurons there and 56 here
plan={bad}/beyond.json -> plan={bad}/beyond.json: …: layer 0 cannot keep these 2 of its 4 KV heads
plan={bad}/uneven.json -> plan={bad}/uneven.json: … (in {bad}/uneven.json: 'dense' has 1 layers, but 'layers' has 4
plan={bad}/unordered.json -> plan={bad}/unordered.json: …: layer 0 cannot keep these 2 of its 56 neurons
plan={bad}/experts.json -> structure.experts=true, or a plan of experts: expected neither for llama; or one of mixtral,
plan={bad}/texts.json -> plan={bad}/texts.json: … (in {bad}/texts.json: 'layers', entry 0: 'kv_heads' must be a list of
plan={bad}/other.json -> plan={bad}/other.json: … (in {bad}/other.json: 'layers' must be a list with an object
plan={bad}/deep.json -> plan={bad}/deep.json: … (in {bad}/deep.json: nested deeper than 100 levels)
plan={bad}/no-weights -> plan={bad}/no-weights: … (in {bad}/no-weights/plan.json: No such file or directory)
plan=smollm2-135m/flap-0.2 -> plan=smollm2-135m/flap-0.2: it does not fit this model: 30 layers there and 4 here
plan=smollm2/flap-0.2 -> plan=smollm2/flap-0.2: expected …, or a packaged plan, such as smollm2-135m/flap-0.2
plan={huge} -> plan=yyy…: must be at most 3,000 bytes long, but has 5,000 bytes
plan={bad}/layers.json ratio=0.3 -> ratio=0.3: expected null with plan={bad}/layers.json, which says
plan={bad}/layers.json target.bytes=1e5 -> target.bytes=100000: expected no target here, because plan=
plan={bad}/layers.json calibration.propagate=pruned -> calibration.propagate=pruned: expected dense with plan

checkpoint.dir={huge} -> checkpoint.dir=yyy…: must be at most 3,000 bytes long, but has 5,000 bytes
checkpoint.dir='~absent/x' -> checkpoint.dir=~absent/x: the folder of this user is unknown
model.path={huge} -> model.path=yyy…: must be at most 3,000 bytes long, but has 5,000 bytes
checkpoint.dir={bad}/{long} -> checkpoint.dir=…: expected a name of at most 240 bytes
model.dtype=int8 -> model.dtype=int8: expected one of auto, float32, bfloat16, float16
model.device=tpu -> model.device=tpu: expected one of auto, cpu, cuda, mps
model.placement=disk -> model.placement=disk: expected one of device, auto, stream
model.placement=stream checkpoint.save=false -> checkpoint.save=False: expected true with model.placement=stream
model.path={bad}/bloom -> model.path…'bloom' is not supported; supported are …llama, …flap/modeling/families
model.path={bad}/absent -> model.path={bad}/absent: expected a directory, and there is no directory with this name
model.path={bad}/no-tokenizer -> model.path={bad}/no-tokenizer: no tokenizer …; copy tokenizer.json and
model.path={bad}/no-weights -> model.path={bad}/no-weights: no …safetensors
model.path={bad}/pickled -> model.path={bad}/pickled: no …safetensors …pickled weights are not read
model.path={bad}/null-config -> model.path={bad}/null-config: …(config.json=null: must be a JSON object)
model.path={bad}/nested-config -> model.path={bad}/nested-config: …(config.json: cannot be read as JSON (nested deeper
model.path={bad}/nested-generation -> model.path={bad}/nested-generation: …(generation_config.json: cannot be read as
model.path={bad}/null-tokenizer -> model.path={bad}/null-tokenizer: …(tokenizer.json=null: must be a JSON object)
model.path={bad}/empty-tokenizer -> model.path={bad}/empty-tokenizer: no tokenizer
model.path={bad}/nested-tokenizer -> model.path={bad}/nested-tokenizer: …(tokenizer.json: cannot be read as JSON (nested
model.path={bad}/list-tokenizer -> model.path={bad}/list-tokenizer: …(tokenizer_config.json=[]: must be a JSON object)
model.path={bad}/no-widths -> model.path={bad}/no-widths: …(config.json: per_layer_config: must have the widths of each
model.path={bad}/hub-kernel -> model.path={bad}/hub-kernel: …(config.json: _attn_implementation=org/kernel: must be
model.path={bad}/no-layers -> model.path={bad}/no-layers: …(config.json: num_hidden_layers=0: must be at least 1
model.path={bad}/too-many-layers -> model.path={bad}/too-many-layers: …(config.json: num_hidden_layers=1000000000: must
model.path={bad}/no-heads -> model.path={bad}/no-heads: no model can be read in this directory (config.json: ZeroDiv
model.path={bad}/no-type -> model.path={bad}/no-type: no model can be read in this directory (config.json: …float7
model.path={long}{long} -> model.path=xxx…xxx: each name in it must be at most 255 bytes long
model.path={bad}/truncated -> model.path={bad}/truncated: model.safetensors is damaged or truncated
model.path={bad}/shard-missing -> model.path={bad}/shard-missing: …json names model-00003…, which is missing
model.path={bad}/shard-truncated -> model.path={bad}/shard-truncated: model-00003… is damaged or truncated
model.path={bad}/index-lies -> model.path={bad}/index-lies: …json names 1 tensors …, such as …up_proj…00001
model.path={bad}/index-broken -> model.path={bad}/index-broken: …json is no index of tensors
model.path={bad}/absent.gguf -> model.path={bad}/absent.gguf: no such file
model.path={bad}/text.gguf -> model.path={bad}/text.gguf: no GGUF, or a damaged or truncated one
model.path={bad}/cut.gguf -> model.path={bad}/cut.gguf: no GGUF, or a damaged or truncated one
model.path={bad}/mpt.gguf -> model.path={bad}/mpt.gguf: a GGUF of architecture mpt, which transformers does not read
model.path={bad}/llama.gguf -> model.path={bad}/llama.gguf: a GGUF of architecture llama, which transformers does not

metric.square_attention=abc -> metric.square_attention=abc: …bool
metric=random metric.seed=-1 -> metric.seed=-1: expected a whole number from 0 to
metric=OBS metric.ridge=0 -> metric.ridge=0.0: expected a number > 0
metric=OBS metric.ridge=inf -> metric.ridge=inf: expected a number > 0
metric=taylor structure.scale=error -> structure.scale=error: expected metric=WIFV or metric=OBS
metric=taylor model.placement=stream -> model.placement=stream: expected device with the metric Taylor, which needs
metric=taylor model.placement=auto -> model.placement=auto: expected device with the metric Taylor, which needs gradien
metric=taylor calibration.propagate=pruned structure=UL-UM -> calibration.propagate=pruned: expected dense with a metri
method=llm_pruner -> structure.keep_first + structure.keep_last=6: expected at most 3, as this model has 4 layers
structure=middle structure.keep_first=-1 -> structure.keep_first=-1: expected a whole number >= 0
structure=middle structure.keep_first=1 ratio=0.5 structure.keep_last=1 -> ratio=0.5: … KV head… allows at most 0.42
metric=REAP -> structure.experts=False: expected true with a metric that scores the whole experts of a mixture
metric=REAP structure.experts=true -> structure.experts=true, or a plan of experts: expected neither for llama; or o

structure.scale=foo -> structure.scale=foo: expected one of z-score, error, relative
structure.scale=error -> metric.square_attention=True: expected false with structure.scale=error: squared
structure=AL-MM structure.scale=relative metric=wanda -> structure.scale=relative: expected metric=WIFV or metric=OBS
structure.min_heads=-1 -> structure.min_heads=-1: expected 1 to 4, the KV heads of a layer
structure.min_heads=5 -> structure.min_heads=5: expected 1 to 4, the KV heads of a layer
structure.min_neurons=57 -> structure.min_neurons=57: expected 1 to 56, the neurons of a layer
structure=UL-MM structure.min_neurons=0 -> structure.min_neurons=0: expected 1 to 56, the neurons of a layer
structure.min_neurons=56 ratio=0.5 -> ratio=0.5: 1 KV head and 56 neurons stay in every layer, … at most 0.4
structure.min_heads=4 structure.min_neurons=50 -> ratio=0.2: 4 KV heads and 50 neurons stay … most 0.05
structure.min_heads=4 structure.min_neurons=50 round_to=8 -> ratio=0.2: 4 KV heads and 56 neurons … most 0.0
structure.multiple_of_heads=0 -> structure.multiple_of_heads=0: expected 1 to 4, the KV heads
structure=UL-MM structure.multiple_of_heads=5 -> structure.multiple_of_heads=5: expected 1 to 4, the KV heads
structure=UL-UM structure.multiple_of_heads=3 structure.min_heads=4 -> …of_heads=3: … 4 KV heads and keeps at least 4
round_to=7 -> round_to=7: expected null, or one of 8, 32, 64, 128, 256
round_to=64 -> round_to=64: a layer has 56 neurons and keeps at least 1 …; no multiple of 64 lies between
round_to=32 structure.min_neurons=33 -> round_to=32: … keeps at least 33 …; no multiple of 32 lies
structure=AL-MM structure.remove_heads=abc -> structure.remove_heads=abc: …Integer
structure=AL-MM structure.remove_heads=-2 -> structure.remove_heads=-2: … 0 to 12
structure=AL-MM structure.remove_heads=3 -> structure.remove_heads=3: … in steps of 2
structure=AL-MM structure.remove_heads=6 structure.multiple_of_heads=2 -> structure.remove_heads=6: … in steps of 4 (
structure=AL-MM structure.remove_heads=0 structure.min_neurons=56 -> structure.remove_heads=0: … 12 to 12
structure=UL-MM structure.remove_heads=14 -> structure.remove_heads=14: … 0 to 12
structure=UL-MM structure.remove_heads=10 structure.min_heads=3 -> structure.remove_heads=10: … 0 to 8
structure=AL-MM structure.remove_heads=4 target.bytes=1e5 ratio=null -> structure.remove_heads=4: expected null with ta
structure=UL-MM structure.remove_heads=4 target.bytes=1e5 ratio=null -> structure.remove_heads=4: expected null with ta
structure._target_=os.system -> structure._target_=os.system: expected the name of a dataclass that derives from flap
metric._target_=os.system -> metric._target_=os.system: expected the name of a dataclass that derives from flap.method.
metric._target_=flap.method.importance.Metric -> metric._target_=…Metric: expected the name of …; this one lacks score
metric._target_=absent.Metric -> metric._target_=absent.Metric: … it cannot be imported (No module named 'absent')
compensation._target_=flap.method.importance.WIFV -> compensation._target_=…: expected the name of a dataclass that deri
eval.perplexity._target_=subprocess.Popen -> eval.perplexity._target_=subprocess.Popen: expected the name of a datacl
recover=full recover._target_=os.system -> recover._target_=os.system: expected the name of a dataclass that derives
structure=search structure.tokens=0 -> structure.tokens=0: expected a whole number >= 1
structure=search structure.levels=[] -> structure.levels=[]: expected shares of a block's units between 0
structure=search structure.levels=[0.0] -> structure.levels=[0.0]: expected shares
structure=search structure.levels=[0.5,1.0] -> structure.levels=[0.5, 1.0]: expected shares

compensation=linear compensation.ridge=-1 -> compensation.ridge=-1.0: expected a number >= 0, or null to choose
compensation=linear compensation.ridge=inf -> compensation.ridge=inf: expected a number >= 0, or null to choose
compensation=linear calibration.num_samples=1 -> calibration.num_samples=1: expected at least 2

calibration.propagate=both -> calibration.propagate=both: expected one of dense, pruned
calibration.propagate=pruned -> calibration.propagate=pruned: expected structure=UL-UM, UL-MM or middle,
method=flap_plus calibration.propagate=pruned -> calibration.propagate=pruned: expected structure=UL-UM, UL
calibration.num_samples=0 -> calibration.num_samples=0: expected a whole number >= 1
calibration.num_samples=188 -> calibration.dataset=…187 windows of 16 … lower calibration.num_samples or
calibration.batch_size=0 -> calibration.batch_size=0: expected a whole number >= 1
calibration.seq_len=1 -> calibration.seq_len=1: expected a whole number >= 2
calibration.seq_len=129 -> calibration.seq_len=129: the model's context ends at 128
calibration.bos=maybe -> calibration.bos=maybe: expected one of auto, true, false
calibration.dataset=wikitext3 -> calibration.dataset=wikitext3: unknown dataset; did you mean wikitext2? expected {prompts}
calibration.dataset=boolq -> calibration.dataset=boolq: unknown dataset; did you mean boolq-passages? expected {prompts}
calibration.dataset={bad}/words.csv -> calibration.dataset={bad}/words.csv: unknown dataset; …{prompts}
calibration.dataset={bad}/absent.txt -> calibration.dataset={bad}/absent.txt: no such file; expected {prompts}
calibration.dataset={bad}/empty.txt -> calibration.dataset={bad}/empty.txt: the file contains no text
calibration.dataset={bad}/blank.txt -> calibration.dataset={bad}/blank.txt: the file contains no text
calibration.dataset={bad}/short.txt -> calibration.dataset=…short.txt: 0 windows of 16 tokens are too few
calibration.dataset={bad}/latin1.txt -> calibration.dataset=…latin1.txt: cannot be read; expected text in UTF
calibration.dataset={bad}/other.jsonl -> calibration.dataset={bad}/other.jsonl: no column 'text', only body
calibration.dataset={bad}/deep.jsonl -> calibration.dataset={bad}/deep.jsonl: cannot be read; …nested deeper than 100
calibration.dataset={bad}/asked.jsonl -> …asked.jsonl: not every prompt has an answer (1 missing); add …, or …calibration.answers=self
calibration.dataset={bad}/broken.parquet -> calibration.dataset={bad}/broken.parquet: cannot be read; expected a
calibration.dataset={huge} -> calibration.dataset=yyy…: must be at most 3,000 bytes long, but has 5,000 bytes
calibration.dataset=[c4,{huge}.txt] -> calibration.dataset=yyy….txt: must be at most 3,000 bytes long, but has 5,004 b
calibration.dataset={{huge}:1} -> calibration.dataset=yyy…: must be at most 3,000 bytes long, but has 5,000 bytes
calibration.dataset=/{long}{long}.txt -> calibration.dataset=…: each name in it must be at most 255 bytes long, but one
calibration.bos={huge} -> calibration.bos=yyy…: expected one of auto, true, false
calibration.dataset=[] -> calibration.dataset=[]: expected at least one text
calibration.dataset={} -> calibration.dataset={}: expected at least one text
calibration.dataset=5 -> calibration.dataset=5: expected a text, [text, text] or {text: weight
calibration.dataset=[c4,c4] -> calibration.dataset=['c4', 'c4']: expected each text once
calibration.dataset={self:-1} -> calibration.dataset.self=-1: expected a weight >= 0
calibration.dataset={c4:much} -> calibration.dataset.c4=much: expected a weight >= 0
calibration.dataset={c4:true} -> calibration.dataset.c4=True: expected a weight >= 0
calibration.dataset={c4:nan} -> calibration.dataset.c4=nan: expected a weight >= 0
calibration.dataset={c4:1e300} -> calibration.dataset.c4=1e+300: expected a weight >= 0 and at most 1e+09
calibration.dataset={self:0,c4:0} -> calibration.dataset=…: expected at least one text with a weight above 0
calibration.dataset=[{bad}/short.txt,self] -> …short.txt: 0 windows of 16 tokens are too few for the 4 that
calibration.dataset={self:{wight:1}} -> calibration.dataset.self=wight: expected weight, chat_template
calibration.dataset={c4:{chat_template:no}} -> calibration.dataset.c4.chat_template=no: expected true or false
calibration.dataset={c4:{chat_template:1}} -> calibration.dataset.c4.chat_template=1: expected true or false
calibration.dataset={self:{chat_template:true}} -> calibration.dataset.self.chat_template=True: expected none: prompts

calibration.answers=me -> calibration.answers=me: expected one of given, self
calibration.count=prompts -> calibration.count=prompts: expected one of all, answers
calibration.max_new_tokens=0 -> calibration.max_new_tokens=0: expected a whole number >= 1
calibration.dataset={bad}/asked.jsonl calibration.answers=self calibration.max_new_tokens=128 -> …=128: expected less
calibration.dataset={bad}/asked.jsonl calibration.answers=self calibration.max_new_tokens=127 -> …none of its 1 prompts
calibration.temperature=-1 -> calibration.temperature=-1.0: expected a number >= 0
calibration.answers=self -> calibration.answers=self: expected no calibration.answers here, because no text of this run
calibration.count=answers -> calibration.count=answers: expected no calibration.count here, because no text of this run
calibration.max_new_tokens=9 -> calibration.max_new_tokens=9: expected no …, because no text of this run has prompts
++calibration.temperature=0.5 -> ++calibration.temperature=0.5: expected no …, because no text of this run has prompts
calibration.dataset={bad}/given.jsonl calibration.temperature=1 -> calibration.temperature=1: … the files give the answ
calibration.dataset={bad}/given.jsonl calibration.max_new_tokens=9 -> calibration.max_new_tokens=9: … the files give
recover=full recover.writer=me -> recover.writer=me: expected one of dense, pruned, both
recover=reconstruct recover.writer=pruned -> recover.writer=pruned: expected dense, as no prompts are answered
vocabulary=trim vocabulary.size=90 -> vocabulary=trim: …(WordLevel)
recover=lora recover.rank=0 -> recover.rank=0: expected null or a whole number >= 1
recover=reconstruct calibration.num_samples=1 -> calibration.num_samples=1: expected 2 or more with recover=reconstruct
recover=reconstruct calibration.num_samples=40 recover.batch_size=0 -> recover.batch_size=0: expected 1 to 32, the cali
recover=reconstruct calibration.num_samples=40 recover.batch_size=33 -> recover.batch_size=33: expected 1 to 32, the ca
recover=reconstruct recover.epochs=0 -> recover.epochs=0: expected a whole number >= 1
recover=reconstruct recover.learning_rate=-1 -> recover.learning_rate=-1.0: expected a number > 0
recover=reconstruct mask_only=true -> mask_only=True: expected false with recover=reconstruct, because training would cha
recover=reconstruct model.placement=stream -> model.placement=stream: expected device with recover=reconstruct, which

checkpoint.dir={bad}/occupied -> checkpoint.dir={bad}/occupied: not empty; …checkpoint.overwrite=true
checkpoint.dir={bad}/a-file -> checkpoint.dir={bad}/a-file: expected a directory
checkpoint.dir={bad}/a-loop -> checkpoint.dir={bad}/a-loop: expected a directory
checkpoint.dir=/proc/x -> checkpoint.dir=/proc/x: expected a directory in a place that can be written to
checkpoint.dir={bad}/nowhere/below -> checkpoint.dir={bad}/nowhere/below: expected a directory

eval.perplexity.seq_len=abc -> eval.perplexity.seq_len=abc: expected a whole number >= 2, or a list of whole numbers >= 2
eval.perplexity.seq_len=1 -> eval.perplexity.seq_len=1: expected a whole number >= 2, or a list of whole numbers >= 2
eval.perplexity.seq_len=[] -> eval.perplexity.seq_len=[]: expected a whole number >= 2, or a list of whole numbers >= 2
eval.perplexity.seq_len=129 -> eval.perplexity.seq_len=129: the model's context ends at 128
eval.perplexity.max_tokens=15 -> eval.perplexity.max_tokens=15: expected a whole number >= 16
eval.perplexity.max_tokens=31 eval.perplexity.seq_len=[16,32] -> eval.perplexity.max_tokens=31: expected a whole number
eval.perplexity.batch_size=0 -> eval.perplexity.batch_size=0: expected a whole number >= 1
eval.perplexity.datasets=null -> eval.perplexity.datasets=None: …not Optional
eval.perplexity.datasets=[] -> eval.perplexity.datasets=[]: expected at least one text
eval.perplexity.datasets={bad}/short.txt -> eval.perplexity.datasets…short.txt…list
eval.perplexity.datasets=[{bad}/short.txt] -> eval.perplexity.datasets=…short.txt: its 3 tokens … 16
eval.perplexity.datasets=[{bad}/talk.jsonl] -> …no column 'text', only messages; … asked by eval.generation.tasks
eval.perplexity.datasets=[WikiText2] -> eval.perplexity.datasets=WikiText2: unknown dataset; did you mean wikitext2? expected {texts}
eval.perplexity.datasets=wikitext2 -> eval.perplexity.datasets=wikitext2: expected a list; write 'eval.perplexity.datasets=[wikitext2]'
eval.perplexity.datasets=[{huge}] -> eval.perplexity.datasets=yyy…: must be at most 3,000 bytes long, but has 5,000 b
eval.perplexity.datasets={huge} -> eval.perplexity.datasets=yyy…: must be at most 3,000 bytes long, but has 5,000 byt
eval=[programs] -> eval.programs.run=False: expected true, which runs programs that the model writes on this machine.
eval=[programs] eval.programs.run=true eval.programs.path={bad}/none.jsonl -> eval.programs.path={bad}/none.jsonl: expe
eval=[programs] eval.programs.tasks=[apps] -> eval.programs.tasks=['apps']: expected [humaneval] or [mbpp]
eval=[programs] eval.programs.run=true eval.programs.tasks=[mbpp] -> eval.programs.path=None: expected the problems of
eval=[programs] eval.programs.limit=0 -> eval.programs.limit=0: expected null or a whole number >= 1
eval=[programs] eval.programs.chat_template=yes -> eval.programs.chat_template=yes: expected one of auto, true, false
eval=[programs] eval.programs.run=true eval.programs.chat_template=true -> eval.programs.chat_template=True: expected
eval=zero_shot eval.zero_shot.tasks=[{huge}] -> eval.zero_shot.tasks=yyy…: must be at most 3,000 bytes long, but has
eval=generation eval.generation.tasks=[{huge}.jsonl] -> eval.generation.tasks=yyy…: must be at most 3,000 bytes long,
eval=divergence eval.divergence.seq_len=1 -> eval.divergence.seq_len=1: expected a whole number >= 2
eval=divergence eval.divergence.max_tokens=15 eval.divergence.seq_len=16 -> eval.divergence.max_tokens=15: … >= 16
eval=divergence eval.divergence.batch_size=0 -> eval.divergence.batch_size=0: expected a whole number >= 1
eval=divergence eval.divergence.seq_len=129 -> eval.divergence.seq_len=129: the model's context ends at 128
eval=divergence eval.divergence.bos=maybe -> eval.divergence.bos=maybe: expected one of
eval=divergence eval.divergence.datasets=[{bad}/short.txt] -> eval.divergence.datasets=…short.txt: its 3 tokens do not
eval=efficiency eval.efficiency.batch_size=0 -> eval.efficiency.batch_size=0: expected a whole number >= 1
eval=efficiency eval.efficiency.prefill_len=0 -> eval.efficiency.prefill_len=0: expected a whole number >= 1
eval=efficiency eval.efficiency.decode_len=0 -> eval.efficiency.decode_len=0: expected a whole number >= 1
eval=efficiency eval.efficiency.repeats=0 -> eval.efficiency.repeats=0: expected a whole number >= 1
eval=efficiency -> eval.efficiency.prefill_len + decode_len = 160: the model's context ends at 128
eval=zero_shot eval.zero_shot.tasks=[] -> eval.zero_shot.tasks=[]: expected a list
eval=zero_shot eval.zero_shot.limit=0 -> eval.zero_shot.limit=0: expected null or a whole number >= 1
eval=zero_shot eval.zero_shot.num_fewshot=-1 -> eval.zero_shot.num_fewshot=-1: expected null or a whole number >= 0
eval=zero_shot eval.zero_shot.batch_size=0 -> eval.zero_shot.batch_size=0: expected a whole number >= 1
eval=zero_shot eval.zero_shot.source=disk -> eval.zero_shot.source=disk: expected auto, hub, packaged, or a folder or a
eval=zero_shot eval.zero_shot.chat_template=1 -> eval.zero_shot.chat_template=1: expected one of auto, true, false
eval=generation eval.generation.chat_template=true -> eval.generation.chat_template=True: the tokenizer has no chat tem
eval=generation eval.generation.tasks=[absent.jsonl] -> eval.generation.tasks=absent.jsonl: no such file; expected
eval=generation eval.generation.tasks=[copa] eval.generation.source=packaged -> …tasks=copa: the model writes no answers in it
eval=zero_shot eval.zero_shot.seed=-1 -> eval.zero_shot.seed=-1: expected a whole number from 0
"""

# The runs of this table also have the options recover=full, recover.tokens=2432 and
# recover.seq_len=16.
TRAINED = """
recover.tokens=127 -> recover.tokens=127: expected 128, one step of 8 windows of 16, or more
recover.tokens=2560 -> recover.dataset=…187 windows of 16 … for the 192 that … lower recover.tokens or
recover.seq_len=1 -> recover.seq_len=1: expected a whole number >= 2
recover.seq_len=129 -> recover.seq_len=129: the model's context ends at 128 tokens
recover.batch_size=0 -> recover.batch_size=0: expected a whole number >= 1
recover.patience=0 -> recover.patience=0: expected a whole number >= 1
recover.learning_rate=0 -> recover.learning_rate=0.0: expected a number > 0
recover.learning_rate=inf -> recover.learning_rate=inf: expected a number > 0
recover.dataset=wikitext3 -> recover.dataset=wikitext3: unknown dataset; did you mean wikitext2? expected
recover.dataset=[absent] -> recover.dataset=absent: unknown dataset
recover.dataset={huge} -> recover.dataset=yyy…: must be at most 3,000 bytes long, but has 5,000 bytes
recover.dataset=3 -> recover.dataset=3: expected a text
mask_only=true -> mask_only=True: expected false with recover=full, because training would change the masked units
model.placement=stream -> model.placement=stream: expected device with recover=full, which trains the whol
model.placement=auto -> model.placement=auto: expected device with recover=full, which trains the whole
"""

# The runs of this table also have the option structure.experts=true. Each layer of the model has
# six experts, and the router sends each token to two of them.
MIXTRAL = """
ratio=0.9 -> ratio=0.9: 1 KV head and 2 experts stay in every layer, so this model allows at most
round_to=8 -> round_to=8: expected null with structure.experts=true; a second run can prune the kept experts
mask_only=true -> mask_only=True: expected false with structure.experts=true, as a router cannot be masked
structure.experts=false recover=lora recover.tokens=2432 recover.seq_len=16 -> recover=lora: expected full or none for
"""

# The runs of this table also have the options vocabulary=trim and vocabulary.size=320. The model
# has a byte-level tokenizer of 376 tokens.
WORDS = """
vocabulary.size=100 -> vocabulary.size=100: expected 258 …, which have to stay… to 376, all tokens
vocabulary.size=null vocabulary.coverage=0 -> vocabulary.coverage=0.0: expected a number above 0 and at most 1
vocabulary.coverage=0.5 -> vocabulary.coverage=0.5: expected no vocabulary.coverage here, because vocabulary.size=320 d
vocabulary.size=null vocabulary.coverage=2 -> vocabulary.coverage=2.0: expected a number above 0 and at most 1
vocabulary.dataset=self -> vocabulary.dataset=self: expected texts or files; text of the model itself is counted only as
vocabulary.dataset={huge}.txt -> vocabulary.dataset=yyy…: must be at most 3,000 bytes long, but has 5,004 bytes
vocabulary.dataset={bad}/asked.jsonl -> …asked.jsonl: not every prompt has an answer (1 missing); add an answer to each prompt of the file
vocabulary.dataset={bad}/blank.txt -> vocabulary.dataset={bad}/blank.txt: the file contains no text
mask_only=true -> mask_only=True: expected false with vocabulary=trim, which removes rows instead of masking them
ratio=null target.bytes=20000 -> target.bytes=20000: 1 KV head and 1 neuron stay in every layer, so this model allows
eval=[perplexity,divergence] model.path=/none -> eval=divergence: expected another measurement with vocabulary=trim, because … predict different tokens; eval=perplexity compares
"""

# Errors that flap finds only when it reads the weights or runs the model. Before such an error, the
# run may already have stored measured results of the dense model.
AT_THE_WEIGHTS = """
model.path={bad}/two-layers -> model.path={bad}/two-layers: 18 tensors are in layers that the model does not have, as
model.path={bad}/two-layers model.placement=stream -> model.path={bad}/two-layers: 18 tensors are in layers that the
model.path={bad}/lacking -> model.path={bad}/lacking: 1 tensors are missing, as model.layers.2.mlp.up_proj.weight
model.path={bad}/lacking model.placement=stream -> model.path={bad}/lacking: 1 tensors are missing, as model.layers.2.m
model.path={bad}/misshapen -> model.path={bad}/misshapen: 1 tensors have another shape …, as model.layers.2.mlp.up_proj
model.path={bad}/misshapen model.placement=stream -> model.path={bad}/misshapen: 1 tensors have another shape …, as mod
model.path={bad}/nan -> calibration: activations of layer 2 MLP are not finite
model.path={bad}/nan model.placement=auto -> calibration: activations of layer 2 MLP are not finite
model.path={bad}/nan model.placement=stream -> calibration: activations of layer 2 MLP are not finite
model.path={bad}/nan method=wanda_sp -> calibration: activations of layer 2 MLP are not finite
model.path={bad}/nan structure=search -> calibration: activations of layer 2 MLP are not finite
"""

TABLES = {"llama": LLAMA, "trained": TRAINED, "mixtral": MIXTRAL, "words": WORDS}


def rows(table: str) -> list[list[str]]:
    """Return the command-line arguments and the beginning of the message of each row."""
    return [line.split(" -> ", 1) for line in table.splitlines() if line]
