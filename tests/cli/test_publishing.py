"Tests of cfvae.cli.publishing: the card, and what is said where nothing can be published."

from commandline import done, refused


def test_push_prints_the_card_or_says_why_not(run, monkeypatch):
    card = done("push run me/shapes --card-only")
    for text in ("# shapes", "shapes:n=60", "30 of 30", "## Limits"):
        assert text in card
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("push run me/shapes", "me/shapes could not be published")
    refused("push nowhere me/shapes", "nowhere")
    refused("sample hub:me/shapes --out x.png", "gave no model me/shapes")
