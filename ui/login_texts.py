"""Every word of the door: its pages and what it says when it refuses, in English and Korean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class LoginTexts:
    """The words of one language. Places for values are written {name}."""

    language: str
    other_language: str
    other_language_name: str
    home: str
    """Where the pages of this language begin."""
    login_title: str
    name_label: str
    password_label: str
    login: str
    wrong_login: str
    too_many_logins: str
    busy_logins: str
    logged_out: str
    logout: str
    to_the_chat: str
    password_title: str
    password_intro: str
    current_password: str
    new_password: str
    new_password_again: str
    change_password: str
    wrong_password: str
    passwords_differ: str
    same_password: str
    password_rule: str
    password_changed: str
    consent_title: str
    consent_intro: str
    consent_off: str
    consent_answer: Mapping[str, str]
    consent_yes: str
    consent_no: str
    form_too_old: str
    """Told when a form lacks what only the app's own forms have."""
    refusals: Mapping[str, str]
    """What the guard says when it turns a request away."""


ENGLISH_DOOR: Final = LoginTexts(
    language="en",
    other_language="ko",
    other_language_name="한국어",
    home="/",
    login_title="Log in",
    name_label="Name",
    password_label="Password",
    login="Log in",
    wrong_login="Name or password is wrong.",
    too_many_logins="There were too many wrong tries; wait a minute and try again.",
    busy_logins="Too many people are logging in at this moment; try again in a few seconds.",
    logged_out="You are logged out.",
    logout="Log out",
    to_the_chat="To the chat",
    password_title="Change your password",
    password_intro="Afterwards you are logged out everywhere but here.",
    current_password="Password until now",
    new_password="New password",
    new_password_again="New password again",
    change_password="Change it",
    wrong_password="The password until now is wrong.",
    passwords_differ="The two new passwords differ; type them again.",
    same_password="The new password is the one until now; choose another one.",
    password_rule="A password has {least} to {most} characters; choose another one.",
    password_changed="Your password is changed.",
    consent_title="May your chats teach the assistant?",
    consent_intro=(
        "At night the assistant learns from the chats and votes of people who agreed. What it learned from you stays "
        "on this machine, and operators of this app may read the chats that teach."
    ),
    consent_off="You can change your answer at any time. Until you answer, your chats teach nothing.",
    consent_answer={
        "on": "Your answer so far: yes, my chats may teach.",
        "off": "Your answer so far: no, my chats teach nothing.",
        "unanswered": "You have not answered yet.",
    },
    consent_yes="Yes, use my chats",
    consent_no="No, do not use them",
    form_too_old="This form was out of date, so nothing was changed; send it once more.",
    refusals={
        "host": "This app does not go by that name; open it by its own address, or add the name to door.trusted_hosts.",
        "not_found": "There is nothing here.",
        "method": "That cannot be done this way.",
        "foreign": "The request came from another site and was refused; open the app by its own address.",
        "bad_token": "The API key is not a valid token of this app; an operator makes one with: "
        "python -m feedback_store users token NAME",
        "log_in": "You are not logged in; reload the page and log in.",
        "operators": "Only operators may do that.",
        "proxied": "There are no accounts yet, so this app answers nobody through a proxy; add an operator first.",
        "not_yours": "This page belongs to somebody else's session; reload it.",
        "crowded": "Too many requests of yours are under way; close some tabs and try again.",
        "too_often": "That was too much in one minute; wait a moment and try again.",
        "too_large": "That is more than this app takes at once; send less.",
        "too_slow": "The request took too long to arrive; try again.",
        "malformed": "The request cannot be read; reload the page and try again.",
        "half": "The text holds half of a character, which cannot be stored; remove it and try again.",
        "file": "Files and links to files are not taken here; send text only.",
        "unknown_event": "This page is out of date; reload it and try again.",
        "store": "The database cannot be read at this moment; try again shortly.",
    },
)

KOREAN_DOOR: Final = LoginTexts(
    language="ko",
    other_language="en",
    other_language_name="English",
    home="/ko/",
    login_title="로그인",
    name_label="이름",
    password_label="비밀번호",
    login="로그인",
    wrong_login="이름이나 비밀번호가 맞지 않습니다.",
    too_many_logins="잘못된 시도가 너무 많았습니다. 1분 뒤에 다시 시도하세요.",
    busy_logins="지금 로그인하는 사람이 너무 많습니다. 몇 초 뒤에 다시 시도하세요.",
    logged_out="로그아웃되었습니다.",
    logout="로그아웃",
    to_the_chat="대화로 가기",
    password_title="비밀번호 바꾸기",
    password_intro="바꾸고 나면 여기를 제외한 모든 곳에서 로그아웃됩니다.",
    current_password="지금까지의 비밀번호",
    new_password="새 비밀번호",
    new_password_again="새 비밀번호 다시",
    change_password="바꾸기",
    wrong_password="지금까지의 비밀번호가 맞지 않습니다.",
    passwords_differ="새 비밀번호 두 개가 서로 다릅니다. 다시 입력하세요.",
    same_password="새 비밀번호가 지금까지의 비밀번호와 같습니다. 다른 비밀번호를 고르세요.",
    password_rule="비밀번호는 {least}자에서 {most}자까지입니다. 다른 것을 고르세요.",
    password_changed="비밀번호가 바뀌었습니다.",
    consent_title="내 대화로 도우미를 가르쳐도 될까요?",
    consent_intro=(
        "도우미는 밤마다 동의한 사람들의 대화와 평가에서 배웁니다. 배운 것은 이 컴퓨터에 남으며, 이 앱의 운영자는 "
        "가르치는 데 쓰이는 대화를 읽을 수 있습니다."
    ),
    consent_off="답은 언제든지 바꿀 수 있습니다. 답하기 전에는 대화가 쓰이지 않습니다.",
    consent_answer={
        "on": "지금까지의 답: 예, 내 대화를 써도 됩니다.",
        "off": "지금까지의 답: 아니요, 내 대화를 쓰지 않습니다.",
        "unanswered": "아직 답하지 않았습니다.",
    },
    consent_yes="예, 내 대화를 쓰세요",
    consent_no="아니요, 쓰지 마세요",
    form_too_old="양식이 오래되어 아무것도 바꾸지 않았습니다. 한 번 더 보내세요.",
    refusals={
        "host": "이 앱은 그 이름으로 열 수 없습니다. 앱의 주소로 열거나 door.trusted_hosts에 이름을 더하세요.",
        "not_found": "여기에는 아무것도 없습니다.",
        "method": "그렇게는 할 수 없습니다.",
        "foreign": "다른 사이트에서 온 요청이라 거절했습니다. 앱의 주소로 여세요.",
        "bad_token": "API 키가 이 앱의 토큰이 아닙니다. 운영자가 만들 수 있습니다: "
        "python -m feedback_store users token NAME",
        "log_in": "로그인되어 있지 않습니다. 페이지를 새로 고치고 로그인하세요.",
        "operators": "운영자만 할 수 있습니다.",
        "proxied": "아직 계정이 없어 프록시를 거친 요청에는 답하지 않습니다. 먼저 운영자를 추가하세요.",
        "not_yours": "이 페이지는 다른 사람의 세션입니다. 새로 고치세요.",
        "crowded": "진행 중인 요청이 너무 많습니다. 탭을 몇 개 닫고 다시 시도하세요.",
        "too_often": "1분 동안 너무 많이 보냈습니다. 잠시 뒤에 다시 시도하세요.",
        "too_large": "한 번에 받을 수 있는 양을 넘었습니다. 줄여서 보내세요.",
        "too_slow": "요청이 도착하는 데 너무 오래 걸렸습니다. 다시 시도하세요.",
        "malformed": "요청을 읽을 수 없습니다. 페이지를 새로 고치고 다시 시도하세요.",
        "half": "글에 반쪽짜리 문자가 있어 저장할 수 없습니다. 지우고 다시 시도하세요.",
        "file": "여기서는 파일이나 파일 링크를 받지 않습니다. 글만 보내세요.",
        "unknown_event": "이 페이지는 오래되었습니다. 새로 고치고 다시 시도하세요.",
        "store": "지금은 데이터베이스를 읽을 수 없습니다. 잠시 뒤에 다시 시도하세요.",
    },
)

DOOR_TEXTS: Final[Mapping[str, LoginTexts]] = {"en": ENGLISH_DOOR, "ko": KOREAN_DOOR}
