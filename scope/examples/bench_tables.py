"""How many features does SAEDashboard describe a second?

    python -m venv V && V/bin/pip install sae-dashboard==0.8.0
    V/bin/python bench_tables.py OUT [THREADS]

The same counts as in `bench_tables.rs`: 100,096 tokens in prompts of 128, 1,000 latents of which about 32 fire at a token, a
stream of 640, a vocabulary of 32,768. The model has one layer and no training, its activations are cached on disk before the
clock runs, and its tokenizer is a list of words: what is timed is the description of features and the writing of JSON. Settings
are those of SAEDashboard's runner for Neuronpedia.
"""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from sae_dashboard.components_config import (
    ActsHistogramConfig,
    Column,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    SequencesConfig,
)
from sae_dashboard.layout import SaeVisLayoutConfig
from sae_dashboard.neuronpedia.neuronpedia_converter import NeuronpediaConverter
from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE
from transformer_lens import HookedTransformer, HookedTransformerConfig

WIDTH, D_SAE, ACTIVE, D_VOCAB, PROMPTS, TOKENS, BATCH = 640, 1000, 32, 32768, 782, 128, 128
HOOK = "blocks.0.hook_resid_post"

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else torch.get_num_threads())
torch.manual_seed(0)

config = HookedTransformerConfig(
    n_layers=1, d_model=WIDTH, n_heads=4, d_head=160, d_mlp=2048, d_vocab=D_VOCAB, n_ctx=TOKENS, act_fn="gelu", seed=0
)
model = HookedTransformer(config)
tokens = torch.randint(0, D_VOCAB, (PROMPTS, TOKENS))
_, cache = model.run_with_cache(tokens[:32], names_filter=HOOK)
acts = cache[HOOK].reshape(-1, WIDTH)

sae = SAE.from_dict(
    {
        "architecture": "standard", "d_in": WIDTH, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"hook_name": HOOK, "hook_head_index": None},
    }
)
with torch.no_grad():
    sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(D_SAE, WIDTH), dim=-1))
    sae.W_enc.copy_(sae.W_dec.T)
    sae.b_dec.zero_()
    # So that as many fire as TopK would keep.
    sae.b_enc.copy_(-(acts @ sae.W_enc).quantile(1 - ACTIVE / D_SAE, dim=0))

layout = lambda: SaeVisLayoutConfig(
    columns=[
        Column(
            SequencesConfig(
                stack_mode="stack-all", buffer=None, compute_buffer=True, n_quantiles=5, top_acts_group_size=20,
                quantile_group_size=5,
            ),
            ActsHistogramConfig(),
            LogitsHistogramConfig(),
            LogitsTableConfig(),
            FeatureTablesConfig(n_rows=3),
        )
    ]
)
settings = NeuronpediaRunnerConfig(
    sae_set="bench", sae_path="", outputs_dir=str(out), n_prompts_total=PROMPTS, n_tokens_in_prompt=TOKENS
)
settings.model_id, settings.layer = "bench", 0
vocab = {i: f" w{i}" for i in range(D_VOCAB)}


def describe(features):
    config = SaeVisConfig(
        hook_point=HOOK, features=features, minibatch_size_features=BATCH, minibatch_size_tokens=32,
        quantile_feature_batch_size=64, feature_centric_layout=layout(), cache_dir=out / "cache",
    )
    data = SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
    return NeuronpediaConverter.convert_to_np_json(model, data, settings, vocab)


describe(list(range(2)))  # Fills the cache.
start = time.perf_counter()
n = 0
for batch, first in enumerate(range(0, D_SAE, BATCH)):
    features = list(range(first, min(first + BATCH, D_SAE)))
    (out / f"batch-{batch}.json").write_text(describe(features))
    n += len(features)
    print(f"{n} features in {time.perf_counter() - start:.1f} s", file=sys.stderr)
seconds = time.perf_counter() - start
record = json.loads((out / "batch-0.json").read_text())["features"][5]
print(json.dumps({"features_per_second": n / seconds, "seconds": seconds, "passages": len(record["activations"]),
                  "frac_nonzero": record["frac_nonzero"], "threads": torch.get_num_threads()}))
