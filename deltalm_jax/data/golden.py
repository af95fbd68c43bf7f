"""A fixed set of sentences whose ids tell whether SentencePiece still encodes as it did.

A model file does not decide alone which ids a text becomes: the library's normalisation and its way with ties do too
(segmentations of equal score came out differently from version 0.2.2 on). Prepared data therefore keeps a digest of
these sentences' ids, and where it goes on being prepared, or is used beside newly encoded text, the digest is computed
anew and must be the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from deltalm_jax.data.vocabulary import Vocabulary

# Runs of one letter and of repeated syllables have many segmentations of equal score; the rest is everyday text in many
# scripts, and what normalisation changes: compatibility forms, combining marks, odd spaces, invisible characters.
GOLDEN_SENTENCES = (
    "ñññ ññññññññ ñandú",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "hahahahahahahaha hahahahaha lololololol",
    "wwwwwwwwwww.example.org/////////////index------------=====",
    "!!!!!!!!!!! ??????? ………… ......... ~~~~~~~~~~~",
    ".......... ............. ................ anananananananan nananananananananan ınınınınınını",
    "äää äääää äääääää үүү үүүүү үүүүүүү ത്ത്ത്ത്ത്ത് ப்ப்ப்ப்ப اداداداداداداداد sousousousousousousou",
    "00000000000 1111111 12345678901234567890 3.14159265",
    "nooooooooooo sííííííííí jaaaaaaaaa óóóóóóóó",
    "ха-ха-хахахахахаха ооооооооочень ууууууу",
    "ههههههههههه ككككككك جدااااااااا",
    "哈哈哈哈哈哈哈哈哈哈 啊啊啊啊啊啊 wwwwwwwwww",
    "ㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋ ㅠㅠㅠㅠㅠㅠ",
    "55555555555 มากกกกกกกกกกก ดีดีดีดีดี",
    "The miller's daughter counted seventeen geese before the rain came down.",
    "Der Zug nach Überlingen fährt heute ausnahmsweise von Gleis 7 ab.",
    "Wczoraj żółte liście spadły na śliską ścieżkę za szkołą.",
    "Yağmur dinince çocuklar ırmağın kıyısında taş sektirdiler.",
    "Buổi sáng, bà cụ tưới những chậu hoa trước hiên nhà.",
    "Wakati wa mavuno wanakijiji husaidiana kubeba magunia ya mahindi.",
    "Η γάτα κοιμάται πάνω στο ζεστό πεζούλι του λιμανιού.",
    "Старый мост через реку закрыли на ремонт до конца октября.",
    "Սարի գագաթին դեռ ձյուն կա, իսկ ձորում ծաղկել են ծիրանենիները.",
    "მეზობელმა დილით ახალი პური და ყველი მოგვიტანა.",
    "הספר שהשאלתי מהספרייה נשאר אצל אחותי בחיפה.",
    "فتح البائع دكانه باكرًا ورتّب الفاكهة على الرفوف.",
    "باران که بند آمد، کبوترها روی بام نشستند.",
    "नदी के किनारे बैठा मछुआरा अपना पुराना जाल सुधार रहा था।",
    "বিকেলে ছেলেমেয়েরা মাঠে ঘুড়ি ওড়াতে যায়।",
    "மலை உச்சியில் காற்று மிகவும் குளிராக இருந்தது.",
    "వాన పడగానే పొలాలన్నీ పచ్చగా మారిపోయాయి.",
    "ഓണത്തിന് മുറ്റം നിറയെ പൂക്കളം ഒരുക്കി.",
    "เมื่อคืนฝนตกหนักจนถนนหน้าบ้านน้ำท่วม",
    "မိုးရွာပြီးနောက် ကောင်းကင်မှာ သက်တံပေါ်လာသည်။",
    "ព្រឹកនេះ ផ្សារមានមនុស្សច្រើនណាស់។",
    "በገበያው ውስጥ ትኩስ ቡና ይሸጣል።",
    "昨天下午我們在茶館裡聽了一段評書。",
    "小さな駅の待合室に、古い時計がかかっていた。",
    "할머니는 장독대 옆에서 고추를 말리고 계셨다.",
    "ﬁne ﬂuﬀy ①②③ Ⅷ ㎏ ½ ＦＵＬＬ ｗｉｄｔｈ ｶﾀｶﾅ",
    "e\u0301 é A\u030a Å o\u0302\u0323 ộ ก\u0e4d\u0e32 ni\u0308ce",
    "a\u00a0b\u2003c\u3000d\u200be\u200df\ufeffg   h\u00adi",
    "🙂🙂🙂 👩‍🌾 🇫🇮 ☕️ ♥♥♥♥♥",
    "𐍈 ᚠᚢᚦ ꙮ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \ue000 �",
)


def golden_digest(vocabulary: Vocabulary) -> str:
    """SHA-256 (hexadecimal) of the ids of `GOLDEN_SENTENCES`, as this machine's SentencePiece encodes them."""
    encoded = vocabulary.encode_batch(GOLDEN_SENTENCES)
    return hashlib.sha256(json.dumps(encoded, separators=(",", ":")).encode()).hexdigest()


def drift(described: Mapping[str, Any], vocabulary: Vocabulary) -> str | None:
    """How this machine's encoding differs from the one that a manifest describes; None if it does not.

    Args:
      described: the manifest's entry "vocabulary", with "golden_encodings"; an entry without it says nothing.
      vocabulary: the same model, loaded here.
    """
    then = described.get("golden_encodings")
    if then is None or then == golden_digest(vocabulary):
        return None
    here = vocabulary.describe()["sentencepiece_version"]
    return (
        f"SentencePiece {here} encodes text differently here than version {described.get('sentencepiece_version')}, with "
        "which the data were prepared (the ids of a fixed set of sentences differ). Install that version (constraints.txt "
        "of the project names it), or prepare the data again"
    )
