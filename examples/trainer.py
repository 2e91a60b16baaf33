"""Train an interwoven model with transformers' Trainer, save it, and merge the adapter alone.

    python examples/trainer.py            # the bundled miniature: no GPU, no download, under a minute

For another model, replace MODEL by a path or Hub id, and the rows by your own.
"""

import tempfile

from datasets import Dataset
from peft import LoraConfig
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, Trainer, TrainingArguments

import imsm
from imsm.models.backbones.loading import load_tokenizer

MODEL = "imsm:miniature"


def main() -> None:
    """Train, save, load, generate and merge."""
    model = imsm.get_siamese_model(MODEL, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]), gate="query")
    model.print_trainable_parameters()
    tokenizer = load_tokenizer(name_or_path=MODEL)  # as AutoTokenizer, but knows the miniature's name
    folder = tempfile.mkdtemp()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder, max_steps=60, per_device_train_batch_size=8, learning_rate=1e-2, report_to=[]
        ),
        train_dataset=Dataset.from_list([tokenize(tokenizer, row) for row in rows()]),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.train()
    model.save_pretrained(f"{folder}/model")

    loaded = imsm.SiameseForCausalLM.from_pretrained(f"{folder}/model")
    prompt = tokenizer(rows()[0]["prompt"], return_tensors="pt")
    answer = loaded.generate(**prompt, max_new_tokens=8, do_sample=False)
    print(tokenizer.decode(answer[0], skip_special_tokens=True))

    loaded.stream = "tuned"  # the adapter without the original's share
    plain = loaded.merge_and_unload()  # a plain model of transformers
    plain.save_pretrained(f"{folder}/merged")
    print(f"saved {type(plain).__name__} in {folder}/merged")


def tokenize(tokenizer: PreTrainedTokenizerBase, row: dict[str, str]) -> dict[str, list[int]]:
    """Return one example; the tokens before the first label are its query."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    answer = [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {
        "input_ids": prompt + answer,
        "attention_mask": [1] * len(prompt + answer),
        "labels": [-100] * len(prompt) + answer,
    }


def rows() -> list[dict[str, str]]:
    """Return sums in the miniature's vocabulary."""
    return [
        {"prompt": f"{first} {second}", "answer": str(first + second)} for first in range(8) for second in range(8)
    ]


if __name__ == "__main__":
    main()
