"""What the models of a loaded registry are called and say: made up, and much like real ones."""

import random

PER_NAMESPACE = 25
LONG_HISTORY = "long-history"


def slug_of(number: int) -> str:
    """Name the namespace of model `number`."""
    return f"team-{number // PER_NAMESPACE:05d}"


def words(text: str) -> list[str]:
    return text.split()


FAMILIES = words(
    "bert roberta deberta electra albert distilbert minilm mpnet bge e5 gte llama mistral qwen "
    "gemma phi falcon bloom opt gpt2 t5 flan bart pegasus whisper wav2vec hubert clip siglip vit "
    "swin convnext resnet efficientnet mobilenet yolo detr unet segformer sam"
)
SIZES = words("tiny mini small base medium large xl 7b 13b 70b")
SUBJECTS = words(
    "sentiment news legal medical finance code chat retrieval rerank toxicity intent emotion "
    "ner summary translation captions digits plants satellites speech music invoices reviews"
)
LANGUAGES = words("en zh de fr es it pt ja ko ar hi multilingual")
TASKS = words(
    "text-classification token-classification sentence-similarity text-generation summarization "
    "translation image-classification object-detection automatic-speech-recognition"
)
LIBRARIES = words("pytorch transformers onnx sentence-transformers timm")
LICENSES = words("apache-2.0 mit bsd-3-clause cc-by-4.0 other")
PROSE = words(
    "this model was trained on data that we collected and cleaned for the team it reads inputs of "
    "moderate length and answers with one label for each row accuracy is measured on held out rows "
    "limits apply results may be worse for older sources use with care the license allows changes "
    "weights are stored as plain tensors load them with the library named above and see examples"
)
CHINESE = dict(
    zip(
        SUBJECTS,
        words(
            "情感 新闻 法律 医疗 金融 代码 对话 检索 重排 有害内容 意图 情绪 命名实体 摘要 翻译 "
            "图像描述 手写数字 植物 卫星图像 语音 音乐 发票 评论"
        ),
        strict=True,
    )
)
CHINESE_PROSE = words(
    "模型 在 我们 收集 的 数据 上 训练 输入 长度 适中 每行 给出 一个 标签 准确率 由 留出 数据 测得 "
    "较旧 的 资料 效果 可能 较差 权重 以 张量 保存 请 参考 示例"
)


def describe(number: int, chance: random.Random) -> dict[str, str]:
    """Make up the facts of model `number`; its name is unique in its namespace."""
    family, size = chance.choice(FAMILIES), chance.choice(SIZES)
    subject, language = chance.choice(SUBJECTS), chance.choice(LANGUAGES)
    card = f"{family} {size} for {subject} in {language}. " + " ".join(chance.choices(PROSE, k=80))
    if language == "zh":
        card = f"{family} {size}，用于{CHINESE[subject]}。" + "".join(
            chance.choices(CHINESE_PROSE, k=40)
        )
    return {
        "name": f"{family}-{size}-{subject}-{language}-v{number % PER_NAMESPACE + 1}",
        "summary": f"{family.capitalize()} {size}, fine-tuned for {subject} in {language}.",
        "task": chance.choice(TASKS),
        "library": chance.choice(LIBRARIES),
        "license": chance.choice(LICENSES),
        "subject": subject,
        "language": language,
        "card": card,
    }
