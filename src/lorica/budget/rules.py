"""The rules of `lorica advise`, as data: of each topic the first whose condition holds counts.

usual(h) = 5e-4 (2000 / h)^0.781     LoRA's rate on a base of width h, fitted over Llamas by tinker-cookbook; 0.0775
                                     in place of 0.781 on Qwens
"""

from lorica.budget.advice import Chosen, Facts, Remark, Rule
from lorica.budget.cautions import REGRET, spelled

LORA = "Hu et al. 2021, arXiv:2106.09685"
LORA_PLUS = "Hayou et al. 2024, arXiv:2402.12354"
QLORA = "Dettmers et al. 2023, arXiv:2305.14314"
FORGETS = "Biderman et al. 2024, arXiv:2405.09673"
FEW_SHOTS = "Brown et al. 2020, arXiv:2005.14165"
OURS = "docs/evidence.md"
FEW, SOME, MANY = 1_000, 10_000, 100_000
"""Rows."""
INSTRUCTED_SIZE = 1_000_000_000
HUGE = 30_000_000_000


def always(facts: Facts, chosen: Chosen) -> bool:
    return True


def full(facts: Facts, chosen: Chosen) -> bool:
    return chosen["method.name"] == "full"


def prompt_would_do(facts: Facts, chosen: Chosen) -> bool:
    instructed = facts.instructed and facts.parameters >= INSTRUCTED_SIZE
    return instructed and facts.task == "causal_lm" and facts.rows <= 50 and 2 * facts.tokens <= facts.context


def beyond_an_adapter(facts: Facts, chosen: Chosen) -> bool:
    """More tokens learned than the largest usual adapter has room for."""
    return facts.learned > facts.holds(256)


def out_of_time(facts: Facts, chosen: Chosen) -> bool:
    needed = facts.seconds(epochs=3)
    return None not in (needed, facts.hours) and needed > 3600 * facts.hours  # type: ignore[operator]


def steps(facts: Facts, chosen: Chosen) -> float:
    return chosen["train.epochs"] * facts.rows / chosen["train.rows_per_step"]


def usual(facts: Facts) -> float:
    power = 0.0775 if "qwen" in facts.family else 0.781
    return 5e-4 * (2000 / (facts.width or 2000)) ** power


def rate(share: float):
    """That share of the usual rate, with two digits."""
    return lambda facts, chosen: float(spelled(share * usual(facts)))


def whole_rows(facts: Facts, chosen: Chosen) -> int:
    """The longest row, to the next multiple of 8."""
    return max(min(-(-facts.longest // 8) * 8, facts.context), 2)


RULES: dict[str, tuple[Rule, ...]] = {
    "method": (
        Rule(
            when=prompt_would_do,
            sets={"method.name": "lora"},
            words="none yet",
            reason="all rows fit into one prompt of this instructed base: put them there first, and train where that "
            "falls short",
            source=f"{FEW_SHOTS}: examples in the prompt",
        ),
        Rule(
            when=lambda f, c: beyond_an_adapter(f, c) and f.full_fits,
            sets={"method.name": "full"},
            words="full fine-tuning",
            reason="more tokens are learned than an adapter of rank 256 has room for (two bits a parameter, about one "
            "a token), and all of the base fits",
            source=f"{REGRET}; {FORGETS}: code of 20B tokens, 26.3 against 22.4 % with r=256",
        ),
        Rule(
            when=lambda f, c: not f.fits and not f.quantised,
            sets={"method.name": "lora", "model.quantize": "nf4", "model.double_quant": True},
            words="QLoRA",
            reason="the weights in 16 bits do not fit the device; in 4 bits and with adapters on all linears nothing "
            "was lost from 7B to 65B",
            source=f"{QLORA}, table 4",
        ),
        Rule(
            when=out_of_time,
            sets={"method.name": "lora", "train.lora_plus_ratio": 4.0},
            words="LoRA+",
            reason="three passes take longer than the hours given; B learns at four times A's rate, which reaches the "
            "same loss in up to half of the steps",
            source=f"{LORA_PLUS}: up to twice as fast where the task is hard for the base",
        ),
        Rule(
            when=always,
            sets={"method.name": "lora"},
            words="LoRA",
            reason="on data of this size it learns what full fine-tuning does, at two thirds of the arithmetic",
            source=f"{REGRET}; {OURS}: within two points on docstrings, six below on text-to-SQL after 120 steps",
        ),
    ),
    "targets": (
        Rule(when=full, sets={}, words="all of the base", reason="nothing is frozen", source="the method"),
        Rule(
            when=always,
            sets={"method.target_modules": "all-linear"},
            reason="at equal parameters all linears learn at least as much as attention alone",
            source=f"{REGRET}; {FORGETS}; {QLORA}, section 4",
        ),
    ),
    "rank": (
        Rule(when=full, sets={}, words="none", reason="all of the base is trained", source="the method"),
        Rule(
            when=lambda f, c: f.learned > f.holds(64),
            sets={"method.r": 256},
            reason="lower ranks have no room for so many learned tokens, at two bits a parameter",
            source=REGRET,
        ),
        Rule(
            when=lambda f, c: f.rows >= MANY or f.learned > f.holds(16),
            sets={"method.r": 64},
            reason="much data: what rank 16 has room for is less than is learned, or nearly",
            source=f"{REGRET}; {FORGETS}",
        ),
        Rule(
            when=lambda f, c: f.rows >= SOME,
            sets={"method.r": 16},
            reason="ten thousand rows and more; a higher rank costs little and does not hurt",
            source=REGRET,
        ),
        Rule(
            when=always,
            sets={"method.r": 8},
            reason="ranks 4 to 64 were within half a point on WikiSQL",
            source=f"{LORA}, table 6; {OURS}: r=8 above r=4 above r=1 on text-to-SQL",
        ),
    ),
    "alpha": (
        Rule(when=full, sets={}, words="none", reason="there is no scale", source="the method"),
        Rule(
            when=always,
            sets={"method.alpha": 32.0},
            reason="kept fixed, the best rate hardly depends on the rank: less than twofold from 4 to 512",
            source=REGRET,
        ),
    ),
    "dropout": (
        Rule(when=full, sets={}, words="none", reason="there is no adapter to drop", source="the method"),
        Rule(
            when=lambda f, c: f.rows < FEW,
            sets={"method.dropout": 0.1},
            reason="few rows are soon known by heart",
            source=f"{QLORA}, its scripts: 0.1 up to 13B",
        ),
        Rule(
            when=lambda f, c: f.rows < SOME,
            sets={"method.dropout": 0.05},
            reason="several passes over few rows",
            source=f"{QLORA}, its scripts: 0.05 from 33B on",
        ),
        Rule(
            when=always,
            sets={"method.dropout": 0.0},
            reason="each row is seen once or twice, and it costs time",
            source=f"{REGRET}: none",
        ),
    ),
    "batch": (
        Rule(
            when=lambda f, c: f.rows < 300,
            sets={"train.rows_per_step": 8},
            reason="enough steps from few rows",
            source=f"{LORA}, appendix D: 8 on GPT-2",
        ),
        Rule(
            when=lambda f, c: f.rows < 3_000,
            sets={"train.rows_per_step": 16},
            reason="LoRA bears large steps less well than full fine-tuning",
            source=f"{REGRET}; {LORA}, table 9: 16 on GLUE",
        ),
        Rule(
            when=always,
            sets={"train.rows_per_step": 32},
            reason="LoRA bears large steps less well than full fine-tuning; below 32 or at it nothing is lost",
            source=f"{REGRET}; TRL advises fewer than 32",
        ),
    ),
    "evaluation": (
        Rule(
            when=lambda f, c: f.rows >= 20_000,
            sets={"data.eval": {"by": "row", "share": 0.02}},
            words="2 % of the rows",
            reason="enough to tell evaluations apart; give a file of your own where you have one",
            source="the data",
        ),
        Rule(
            when=lambda f, c: f.rows >= 20,
            sets={"data.eval": {"by": "row", "share": 0.1}},
            words="a tenth of the rows",
            reason="without rows held out nobody sees when the rest is known by heart; give a file of your own where "
            "you have one",
            source="the data",
        ),
    ),
    "epochs": (
        Rule(
            when=lambda f, c: f.rows >= MANY or (f.plain_text and f.tokens >= 10_000_000),
            sets={"train.epochs": 1.0},
            reason="so much data is learned best when each row is new",
            source=REGRET,
        ),
        Rule(
            when=lambda f, c: f.rows >= SOME,
            sets={"train.epochs": 2.0},
            reason="two passes over tens of thousands of rows",
            source=f"{LORA}, table 12: 2 on GPT-3",
        ),
        Rule(
            when=lambda f, c: "data.eval" not in c,
            sets={"train.epochs": 3.0},
            reason="too few rows to hold some out, so that nobody sees when they are known by heart",
            source="the data",
        ),
        Rule(
            when=lambda f, c: f.rows < FEW,
            sets={"train.epochs": 5.0, "train.patience": 2},
            words="epochs 5, stopped after 2 evaluations without gain",
            reason="few rows take several passes, and are soon known by heart",
            source=f"{LORA}, appendix D: 5 on GPT-2; the best evaluated adapter is kept",
        ),
        Rule(
            when=always,
            sets={"train.epochs": 3.0, "train.patience": 2},
            words="epochs 3, stopped after 2 evaluations without gain",
            reason="a few passes over some thousand rows; the best evaluated adapter is kept",
            source=f"{FORGETS}: instruction tuning gains over several epochs",
        ),
    ),
    "learning rate": (
        Rule(
            when=full,
            sets={"train.learning_rate": rate(0.1)},
            reason="a tenth of LoRA's on this width",
            source=f"{REGRET}: 9.8 times over 14 models",
        ),
        Rule(
            when=lambda f, c: "train.lora_plus_ratio" in c,
            sets={"train.learning_rate": rate(0.5)},
            reason="it is A's, which the authors lower beside a ratio; B's is four times that",
            source=f"{LORA_PLUS} and its scripts",
        ),
        Rule(
            when=lambda f, c: f.parameters >= HUGE,
            sets={"train.learning_rate": 1e-4},
            reason="from 33B parameters on",
            source=f"{QLORA}, its scripts",
        ),
        Rule(
            when=lambda f, c: steps(f, c) < 100,
            sets={"train.learning_rate": rate(1.5)},
            reason="fewer than 100 steps: half as much again as the fit for this width",
            source=f"{REGRET}; tinker-cookbook",
        ),
        Rule(
            when=always,
            sets={"train.learning_rate": rate(1.0)},
            reason="5e-4 (2000 / width)^0.781, on Qwens ^0.0775; half and double are worth a try",
            source="tinker-cookbook, fitted with alpha 32",
        ),
    ),
    "length": (
        Rule(
            when=always,
            sets={"data.max_length": whole_rows},
            reason="the longest row: none is dropped, and packing leaves no padding",
            source="the data",
        ),
    ),
}

DISAGREEMENTS: tuple[Remark, ...] = (
    Remark(
        when=lambda f, c: "method.r" in c,
        words="alpha 32 at any rank could not be improved on once the rate was swept; at r=256 alpha = 2 r was "
        "crucial; the first paper takes the first r it tries, QLoRA 16 at r=64. Tune the rate beside it",
        source=f"{REGRET}; {FORGETS}; {LORA}; {QLORA}",
    ),
    Remark(
        when=lambda f, c: f.plain_text or f.rows >= SOME,
        words="LoRA needs more steps than full fine-tuning, or as many where all linears are adapted and its rate is "
        "ten times as high",
        source=f"{FORGETS}; {REGRET}",
    ),
    Remark(
        when=lambda f, c: f.rows < FEW,
        words="fewer than 100 rows are called too few, but with 100 of MNLI LoRA had 63.8 % and full fine-tuning 60.2",
        source=f"popular texts; {LORA}, table 16",
    ),
    Remark(
        when=lambda f, c: "train.lora_plus_ratio" in c,
        words="ratios of 16 and more are given for encoders, 2 to 4 for Llamas; and what it gains shrinks where LoRA's "
        "own rate is tuned",
        source=f"{LORA_PLUS}; {REGRET}",
    ),
)

DOUBTS: tuple[Remark, ...] = (
    Remark(
        when=lambda f, c: beyond_an_adapter(f, c) and c["method.name"] != "full",
        words="more is learned than an adapter of rank 256 has room for, and full fine-tuning does not fit: it will "
        "lag behind; take fewer rows, or a larger device",
        source=f"{REGRET}; {FORGETS}",
    ),
    Remark(
        when=lambda f, c: f.plain_text and c["method.name"] != "full",
        words="plain text teaches a manner more than facts: in continued pretraining LoRA stays behind full "
        "fine-tuning, and forgets less",
        source=FORGETS,
    ),
    Remark(
        when=lambda f, c: f.rows < 100,
        words="so few rows teach a form, not a skill; compare with a prompt that shows some of them",
        source=FEW_SHOTS,
    ),
    Remark(
        when=lambda f, c: 20 * f.dropped > f.rows,
        words="more than one row in twenty is dropped; lorica data says which, and why",
        source="the data",
    ),
)
