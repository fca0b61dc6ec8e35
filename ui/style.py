"""The look: a theme from system fonts, the style sheet beside this file, and the brand."""

from pathlib import Path

import gradio as gr

from ui.texts import Texts

SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans KR", "sans-serif")
MOON = Path(__file__).parent / "moon.svg"
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
INK = gr.themes.Color(
    name="ink", c50="#f6f6fb", c100="#ececf6", c200="#dadbec", c300="#bcbfdd", c400="#9197c4", c500="#6a71ab",
    c600="#4c5391", c700="#3b4176", c800="#2c3059", c900="#1d203d", c950="#12142a",
)  # fmt: skip
PAPER = gr.themes.Color(
    name="paper", c50="#faf9f6", c100="#f3f1ec", c200="#e6e3db", c300="#d2cec3", c400="#a5a196", c500="#77746b",
    c600="#57554f", c700="#3a3a40", c800="#23242e", c900="#191a24", c950="#11121a",
)  # fmt: skip


def nightschool_theme() -> gr.themes.Base:
    """Paper by day, ink by night; no font is fetched."""
    theme = gr.themes.Base(
        primary_hue=INK, secondary_hue=INK, neutral_hue=PAPER, font=SANS, font_mono=MONO,
        radius_size=gr.themes.sizes.radius_lg, text_size=gr.themes.sizes.text_md,
    )  # fmt: skip
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="#e9e8ee",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_900",
        border_color_primary="*neutral_200",
        border_color_primary_dark="#32333f",
        block_border_width="0px",
        block_shadow="none",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover_dark="*primary_400",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_200",
        button_secondary_border_color_dark="#3a3b48",
        button_border_width="1px",
        button_large_text_weight="550",
        button_small_text_weight="500",
        input_background_fill="#ffffff",
        input_background_fill_dark="*neutral_800",
        input_border_color="*neutral_200",
        input_border_color_dark="#3a3b48",
        input_border_width="1px",
        link_text_color="*primary_600",
        link_text_color_dark="*primary_300",
    )


def brand_html(texts: Texts) -> str:
    """The name with its moon."""
    return (
        f"<div class='brand'>{MOON.read_text(encoding='utf-8')}"
        f"<div><strong>Nightschool</strong><span>{texts.escape(texts.tagline)}</span></div></div>"
    )


def style_sheet() -> str:
    """Read the style sheet."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def account_html(texts: Texts, name: str, logout_token: str) -> str:
    """Who is logged in, what of theirs they can change, and the way out, which is no link: a link could be planted."""
    return (
        f"<p>{texts.escape(texts.logged_in_as.format(name=name))}</p>"
        f"<div class='links'><a href='/password'>{texts.escape(texts.to_password)}</a>"
        f"<a href='/consent'>{texts.escape(texts.to_teaching)}</a>"
        "<form method='post' action='/logout'>"
        f"<input type='hidden' name='token' value='{texts.escape(logout_token)}'>"
        f"<button>{texts.escape(texts.log_out)}</button></form></div>"
    )


def language_html(texts: Texts) -> str:
    """A link to the page in the other language."""
    other = texts.other_language
    return f"<a href='/?lang={other}' lang='{other}'>{texts.escape(texts.other_language_name)}</a>"
