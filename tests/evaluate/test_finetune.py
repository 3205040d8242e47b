"""Fine-tuning against training from nothing: pairs of seeds, and their rows."""

from experiments import finetune, rows


def test_differences_are_taken_seed_by_seed():
  found = [
    {"arm": arm, "seed": seed, "test_loss": loss}
    for arm, losses in {
      "nothing": (1.5, 2.5, 3.5),
      "init": (1.25, 2.0, 3.25),
    }.items()
    for seed, loss in enumerate(losses)
  ]
  found.append({"arm": "init", "seed": 3, "test_loss": 9.0})
  line = finetune.summary(found).splitlines()[1]
  assert line.startswith("init")
  assert "difference  -0.3333, 95 % from" in line
  assert line.endswith("3 seeds")


def test_on_new_classes_a_trained_model_is_ahead_for_each_seed():
  found = rows.read(finetune.RESULTS)
  losses = {(row["arm"], row["seed"]): row["test_loss"] for row in found}
  seeds = {seed for arm, seed in losses if arm == "init"}
  assert len(seeds) >= 3
  for seed in seeds:
    assert losses["init", seed] < losses["nothing", seed]
