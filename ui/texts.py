"""Every word the web app says, in English and Korean. One object a language, so that a missing word is a type error."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from assistant import errors as assistant_errors
from feedback_store import errors as store_errors

LANGUAGES: Final = ("en", "ko")


@dataclass(frozen=True)
class Texts:
    """The words of one language. Places for values are written {name}."""

    language: str
    other_language: str
    other_language_name: str
    tagline: str
    chat_tab: str
    compare_tab: str
    operate_tab: str
    # chat
    new_conversation: str
    conversations: str
    untitled: str
    chat_placeholder: str
    message_label: str
    message_placeholder: str
    send: str
    stop: str
    retry: str
    version: str
    version_before: str
    version_after: str
    preset_label: str
    presets: Mapping[str, str]
    note_stopped: str
    note_failed: str
    note_interrupted: str
    empty_message: str
    too_long: str
    still_writing: str
    nothing_to_retry: str
    failed_reply: str
    dropped_turns: str
    cut_at_limit: str
    # votes
    thumb_up: str
    thumb_down: str
    about_reply: str
    seed: str
    base_model: str
    adapter: str
    reasons_label: str
    reasons_label_down: str
    reasons: Mapping[str, str]
    comment_label: str
    comment_placeholder: str
    save_comment: str
    retract: str
    open_rewrite: str
    rewrite_label: str
    rewrite_info: str
    save_rewrite: str
    has_rewrite: str
    vote_saved: str
    vote_retracted: str
    vote_first: str
    not_votable: str
    rewrite_saved: str
    reload_page: str
    # compare
    compare_intro: str
    compare_placeholder: str
    compare_button: str
    left: str
    right: str
    choices: Mapping[str, str]
    choice_question: str
    choice_saved: str
    you_chose: str
    next_round: str
    no_comparison: str
    past_comparisons: str
    unanswered: str
    reopen_comparison: str
    # operate
    votes_title: str
    usable_votes: str
    votes_missing: str
    votes_enough: str
    counts: Mapping[str, str]
    live_title: str
    live_before: str
    nothing_before: str
    night_title: str
    retrain: str
    retrain_started: str
    retrain_running: str
    retrain_ended: str
    progress: str
    time_left: str
    refresh: str
    adapters_title: str
    adapter_choice: str
    promote: str
    rollback: str
    promoted: str
    rolled_back: str
    no_adapters: str
    adapter_states: Mapping[str, str]
    runs_title: str
    no_runs: str
    run_outcomes: Mapping[str, str]
    gate_columns: tuple[str, str, str, str, str]
    gate_note: str
    enlarge: str
    passed: str
    not_passed: str
    # errors
    adapter_errors: Mapping[type[Exception], str]
    """About an adapter that was to be promoted; `errors` speaks of the one that answers."""
    errors: Mapping[type[Exception], str]

    def error(self, error: Exception) -> str:
        """One sentence for an error: this language's where there is one, else the error's own."""
        return self.errors.get(type(error), str(error))

    def adapter_error(self, error: Exception) -> str:
        """One sentence about an adapter that was not promoted."""
        return self.adapter_errors.get(type(error), str(error))

    def adapter_name(self, adapter_id: str | None) -> str:
        """The base's name, or the adapter's id in words."""
        if adapter_id is None:
            return self.base_model
        # Adapters made by a night carry the word in their id.
        return adapter_id if adapter_id.startswith("adapter-") else f"{self.adapter} {adapter_id}"

    @staticmethod
    def escape(text: str) -> str:
        """Make text safe inside HTML."""
        return html.escape(text)


ENGLISH: Final = Texts(
    language="en",
    other_language="ko",
    other_language_name="한국어",
    tagline="Learns nightly from your votes",
    chat_tab="Chat",
    compare_tab="Compare",
    operate_tab="Operate",
    new_conversation="New conversation",
    conversations="Conversations",
    untitled="New conversation",
    chat_placeholder="### What would you like to work out?\nAsk anything. Your votes are tonight's lesson.",
    message_label="Your message",
    message_placeholder="Write a message",
    send="Send",
    stop="Stop",
    retry="↻ Retry",
    version="{version} of {versions}",
    version_before="Earlier version",
    version_after="Later version",
    preset_label="How it answers",
    presets={"plain": "Plain", "socratic": "Socratic tutor"},
    note_stopped="Stopped here.",
    note_failed="This reply failed. Retry asks again.",
    note_interrupted="The app was closed while this was being written.",
    empty_message="Write a message first; this one is empty.",
    too_long="This message has {chars:,} characters and {limit:,} fit. Shorten it and send it again.",
    still_writing="A reply is still being written. Wait for its end, or press Stop.",
    nothing_to_retry="There is no finished reply to retry yet.",
    failed_reply="The reply failed on the way. Your message is kept; Retry asks again.",
    dropped_turns="This conversation outgrew the model's memory: its {count} earliest turns were left out here.",
    cut_at_limit="The reply reached its length limit. Ask it to go on.",
    thumb_up="👍 Good answer",
    thumb_down="👎 Not good",
    about_reply="Reply {place} of {of}",
    seed="seed",
    base_model="Base model",
    adapter="Adapter",
    reasons_label="What was good about it?",
    reasons_label_down="What was wrong with it?",
    reasons={
        "correct": "Correct",
        "clear": "Clear",
        "complete": "Complete",
        "right_tone": "Right tone",
        "wrong": "Wrong",
        "unclear": "Unclear",
        "too_long": "Too long",
        "ignored_instruction": "Ignored what I asked",
        "told_the_answer": "Told the answer",
        "bad_tone": "Bad tone",
        "other": "Other",
    },
    comment_label="Comment",
    comment_placeholder="Add a comment (optional)",
    save_comment="Save",
    retract="Take vote back",
    open_rewrite="✎ Write a better answer",
    rewrite_label="Your better answer",
    rewrite_info="The model learns from it directly. Change its answer, or write your own.",
    save_rewrite="Save my answer",
    has_rewrite="has your better answer",
    vote_saved="Your vote is saved.",
    vote_retracted="Your vote is taken back.",
    vote_first="Choose a thumb first, then say why.",
    not_votable="Votes are for finished replies. Wait for its end, or retry.",
    rewrite_saved="Your answer is saved. Thank you.",
    reload_page="The page is out of date. Reload it and vote again.",
    compare_intro="One prompt, two answers from the same model. Which would you rather have?",
    compare_placeholder="Write a prompt to compare two answers",
    compare_button="Compare",
    left="Left",
    right="Right",
    choices={"left": "← Left is better", "right": "Right is better →", "tie": "Equally good", "both-bad": "Both bad"},
    choice_question="Which answer is better?",
    choice_saved="Your choice is saved.",
    you_chose="You chose: {choice}",
    next_round="Next",
    no_comparison="One of the answers has no proper end, so there is nothing to choose. Press Compare to try again.",
    past_comparisons="Your comparisons",
    unanswered="not answered yet",
    reopen_comparison="Not answered yet: choose one to answer it",
    votes_title="Votes so far",
    usable_votes="{usable} of {needed} usable examples",
    votes_missing="{missing} more until a night can train.",
    votes_enough="Enough for a night.",
    counts={
        "thumbs_up": "Thumbs up",
        "thumbs_down": "Thumbs down",
        "comparisons": "Comparisons",
        "rewrites": "Better answers",
        "pairs": "Preference pairs",
        "replies": "Replies",
    },
    live_title="Answering now",
    live_before="Before: {adapter}",
    nothing_before="Nothing was promoted yet.",
    night_title="The night",
    retrain="Retrain now",
    retrain_started="Training has started.",
    retrain_running="A training run is under way already.",
    retrain_ended="The last run has ended: {last}",
    progress="{phase}: step {step} of {total}",
    time_left="about {minutes} min left",
    refresh="Refresh",
    adapters_title="Adapters",
    adapter_choice="Which one should answer",
    promote="Promote",
    rollback="Roll back",
    promoted="{adapter} answers from the next message on.",
    rolled_back="Rolled back: {adapter} answers from the next message on.",
    no_adapters="No adapter yet. The first successful night makes one.",
    adapter_states={"ready": "ready", "refused": "refused", "retired": "retired", "live": "answering"},
    runs_title="Last nights",
    no_runs="No night has run yet.",
    run_outcomes={
        "promoted": "promoted",
        "refused": "refused",
        "skipped": "skipped",
        "failed": "failed",
        "running": "running",
        "crashed": "crashed",
    },
    gate_columns=("Check", "Live", "Candidate", "Limit", "Result"),
    gate_note=(
        "The limit is what the candidate must keep to: for the accuracy, how far below the live adapter it may fall at "
        "worst; for the perplexity and the replies, the most that is allowed. It is promoted when every check passes."
    ),
    enlarge="Open in full size",
    passed="passed",
    not_passed="not passed",
    adapter_errors={},
    errors={},
)

KOREAN: Final = Texts(
    language="ko",
    other_language="en",
    other_language_name="English",
    tagline="여러분의 투표로 밤마다 배웁니다",
    chat_tab="대화",
    compare_tab="비교",
    operate_tab="운영",
    new_conversation="새 대화",
    conversations="지난 대화",
    untitled="새 대화",
    chat_placeholder="### 무엇을 함께 풀어 볼까요?\n무엇이든 물어보세요. 답변에 남긴 투표가 오늘 밤의 수업이 됩니다.",
    message_label="메시지",
    message_placeholder="메시지를 입력하세요",
    send="보내기",
    stop="멈추기",
    retry="↻ 다시 답하기",
    version="{versions}개 중 {version}번째",
    version_before="이전 답변",
    version_after="다음 답변",
    preset_label="답변 방식",
    presets={"plain": "기본", "socratic": "소크라테스식 튜터"},
    note_stopped="여기서 멈췄습니다.",
    note_failed="답변에 실패했습니다. 다시 답하기를 눌러 주세요.",
    note_interrupted="답변을 쓰는 동안 앱이 종료되었습니다.",
    empty_message="메시지가 비어 있습니다. 내용을 입력해 주세요.",
    too_long="메시지가 {chars:,}자입니다. {limit:,}자까지 보낼 수 있으니 줄여서 다시 보내 주세요.",
    still_writing="아직 답변을 쓰고 있습니다. 끝날 때까지 기다리거나 멈추기를 눌러 주세요.",
    nothing_to_retry="다시 답할 수 있는 완성된 답변이 아직 없습니다.",
    failed_reply="답변이 도중에 실패했습니다. 메시지는 남아 있으니 다시 답하기를 눌러 주세요.",
    dropped_turns="대화가 모델의 기억보다 길어져, 가장 오래된 {count}개의 메시지를 빼고 답했습니다.",
    cut_at_limit="답변이 길이 제한에 닿았습니다. 이어서 써 달라고 해 보세요.",
    thumb_up="👍 좋은 답변",
    thumb_down="👎 아쉬운 답변",
    about_reply="{of}개 중 {place}번째 답변",
    seed="시드",
    base_model="기본 모델",
    adapter="어댑터",
    reasons_label="어떤 점이 좋았나요?",
    reasons_label_down="어떤 점이 아쉬웠나요?",
    reasons={
        "correct": "정확함",
        "clear": "알기 쉬움",
        "complete": "빠짐없음",
        "right_tone": "말투가 좋음",
        "wrong": "틀림",
        "unclear": "알기 어려움",
        "too_long": "너무 김",
        "ignored_instruction": "요청을 따르지 않음",
        "told_the_answer": "정답을 말해 버림",
        "bad_tone": "말투가 나쁨",
        "other": "기타",
    },
    comment_label="의견",
    comment_placeholder="의견을 남겨 주세요 (선택)",
    save_comment="저장",
    retract="투표 취소",
    open_rewrite="✎ 더 나은 답변 쓰기",
    rewrite_label="내가 쓴 더 나은 답변",
    rewrite_info="모델이 이 답변을 그대로 배웁니다. 답변을 고치거나 새로 써 주세요.",
    save_rewrite="내 답변 저장",
    has_rewrite="내가 쓴 답변 있음",
    vote_saved="투표를 저장했습니다.",
    vote_retracted="투표를 취소했습니다.",
    vote_first="먼저 엄지를 고른 다음 이유를 알려 주세요.",
    not_votable="완성된 답변에만 투표할 수 있습니다. 끝날 때까지 기다리거나 다시 답하기를 눌러 주세요.",
    rewrite_saved="답변을 저장했습니다. 고맙습니다.",
    reload_page="페이지가 오래되었습니다. 새로 고친 뒤 다시 투표해 주세요.",
    compare_intro="질문 하나에 같은 모델이 두 번 답합니다. 어느 쪽이 더 마음에 드나요?",
    compare_placeholder="두 답변을 비교할 질문을 입력하세요",
    compare_button="비교하기",
    left="왼쪽",
    right="오른쪽",
    choices={
        "left": "← 왼쪽이 더 좋음",
        "right": "오른쪽이 더 좋음 →",
        "tie": "둘 다 좋음",
        "both-bad": "둘 다 별로",
    },
    choice_question="어느 답변이 더 좋은가요?",
    choice_saved="선택을 저장했습니다.",
    you_chose="선택: {choice}",
    next_round="다음",
    no_comparison="끝까지 쓰지 못한 답변이 있어 고를 수 없습니다. 비교하기를 다시 눌러 주세요.",
    past_comparisons="나의 비교 기록",
    unanswered="아직 고르지 않음",
    reopen_comparison="아직 고르지 않은 비교: 눌러서 고르기",
    votes_title="지금까지의 투표",
    usable_votes="쓸 수 있는 예시 {needed}개 중 {usable}개",
    votes_missing="{missing}개가 더 모이면 밤에 학습할 수 있습니다.",
    votes_enough="밤에 학습하기에 충분합니다.",
    counts={
        "thumbs_up": "좋아요",
        "thumbs_down": "아쉬워요",
        "comparisons": "비교",
        "rewrites": "더 나은 답변",
        "pairs": "선호 쌍",
        "replies": "답변",
    },
    live_title="지금 답하는 모델",
    live_before="이전: {adapter}",
    nothing_before="아직 적용된 어댑터가 없습니다.",
    night_title="밤 학습",
    retrain="지금 다시 학습",
    retrain_started="학습을 시작했습니다.",
    retrain_running="이미 학습이 진행 중입니다.",
    retrain_ended="지난 학습이 끝났습니다: {last}",
    progress="{phase}: {total}단계 중 {step}단계",
    time_left="약 {minutes}분 남음",
    refresh="새로 고침",
    adapters_title="어댑터",
    adapter_choice="답변할 모델 고르기",
    promote="적용",
    rollback="되돌리기",
    promoted="다음 메시지부터 {adapter}(이)가 답합니다.",
    rolled_back="되돌렸습니다. 다음 메시지부터 {adapter}(이)가 답합니다.",
    no_adapters="아직 어댑터가 없습니다. 첫 학습이 성공하면 만들어집니다.",
    adapter_states={"ready": "준비됨", "refused": "불합격", "retired": "보관됨", "live": "답변 중"},
    runs_title="지난 학습",
    no_runs="아직 학습한 적이 없습니다.",
    run_outcomes={
        "promoted": "적용됨",
        "refused": "불합격",
        "skipped": "건너뜀",
        "failed": "실패",
        "running": "진행 중",
        "crashed": "중단됨",
    },
    gate_columns=("검사", "현재", "후보", "기준", "결과"),
    gate_note=(
        "기준은 후보가 지켜야 하는 한계입니다. 정확도는 현재 어댑터보다 최악의 경우 얼마나 낮아져도 되는지, "
        "퍼플렉시티와 답변 검사는 허용되는 최댓값입니다. 모든 검사를 통과하면 적용됩니다."
    ),
    enlarge="크게 보기",
    passed="통과",
    not_passed="미통과",
    adapter_errors={
        assistant_errors.AdapterMissing: "어댑터를 찾을 수 없어 아무것도 바꾸지 않았습니다. 다른 것을 골라 주세요.",
        assistant_errors.AdapterDamaged: "어댑터가 손상되어 아무것도 바꾸지 않았습니다. 다른 것을 골라 주세요.",
        assistant_errors.AdapterForOtherBase: (
            "이 어댑터는 다른 모델용이라 아무것도 바꾸지 않았습니다. 다른 것을 골라 주세요."
        ),
    },
    errors={
        assistant_errors.PromptTooLong: "메시지가 모델이 읽을 수 있는 길이보다 깁니다. 줄여서 다시 보내 주세요.",
        assistant_errors.EngineBusy: "지금은 기다리는 답변이 너무 많습니다. 잠시 후 다시 보내 주세요.",
        assistant_errors.GenerationFailed: "답변이 도중에 실패했습니다. 다시 답하기를 눌러 주세요.",
        assistant_errors.AdapterError: "지금 적용된 어댑터를 쓸 수 없습니다. 운영 탭에서 되돌려 주세요.",
        assistant_errors.AdapterMissing: "지금 적용된 어댑터를 찾을 수 없습니다. 운영 탭에서 되돌려 주세요.",
        assistant_errors.AdapterDamaged: "지금 적용된 어댑터가 손상되었습니다. 운영 탭에서 되돌려 주세요.",
        assistant_errors.AdapterForOtherBase: "이 어댑터는 다른 모델용입니다. 운영 탭에서 되돌려 주세요.",
        store_errors.NotYours: "이 대화에서 찾을 수 없습니다. 페이지를 새로 고쳐 주세요.",
        store_errors.StaleGeneration: "그사이 다른 어댑터가 적용되었습니다. 새로 고친 뒤 다시 해 주세요.",
        store_errors.UnknownAdapter: "그런 어댑터가 없습니다. 새로 고친 뒤 다시 골라 주세요.",
        store_errors.NothingToRollBack: "되돌릴 이전 어댑터가 없습니다.",
    },
)

TEXTS: Final[Mapping[str, Texts]] = {"en": ENGLISH, "ko": KOREAN}


def preferred_language(accept_language: str) -> str:
    """Choose from an Accept-Language header: the first language that the app speaks, else English."""
    weighted = []
    for place, item in enumerate(accept_language.split(",")[:20]):
        tag, _, quality = item.strip().partition(";q=")
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            weight = 0.0
        weighted.append((-weight, place, tag.split("-")[0].lower()))
    for _, _, language in sorted(weighted):
        if language in LANGUAGES:
            return language
    return "en"
