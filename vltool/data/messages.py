"""The images and messages that a record brings along, as written; no prompt is added here."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Literal, cast

from msgspec import Struct

from vltool.data.fields import FieldReader
from vltool.data.geometry import shown

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


class InlineImage(Struct, frozen=True):
    """An encoded image (JPEG, PNG, …) that a record carries itself, as base64 under `bytes`."""

    data: bytes


ImageRef = str | InlineImage
"""A path, an http(s) URL, a data URL, or the bytes themselves."""


class Item(Struct, frozen=True):
    """A part of a message: text, or the place of the record's next image."""

    type: Literal["text", "image"]
    text: str = ""


class Message(Struct, frozen=True):
    """A turn of a conversation; images stand in user turns only."""

    role: Role
    content: str | tuple[Item, ...]


_IMAGE_FORM = 'write a path, a URL, a data URL or {"bytes": "<base64>"}'
_TURNS = "write system (optional), then user and assistant in turn, the assistant last"


class MessageReader(FieldReader):
    """Reads `images` and `messages`."""

    def images(self, value: object) -> tuple[ImageRef, ...]:
        if value is None:
            return ()
        if not isinstance(value, list):
            self.say(f"images is {shown(value)}, not a list", f"write [{shown(value)}]")
            return ()
        refs = [self.image(item, f"images[{i}]") for i, item in enumerate(value)]
        return tuple(ref for ref in refs if ref is not None)

    def image(self, value: object, name: str) -> ImageRef | None:
        if isinstance(value, str) and value.strip() and "\0" not in value:
            return value
        if not isinstance(value, dict):
            self.say(f"{name} is {shown(value)}, not an image", _IMAGE_FORM)
        elif isinstance(path := value.get("path") or value.get("url"), str):
            self.say(f"{name} is {shown(value)}", f"write the text itself: {shown(path)}")
        elif list(value) != ["bytes"] or not isinstance(value["bytes"], str) or not value["bytes"]:
            self.say(f"{name} is {shown(value)}, not an image", _IMAGE_FORM)
        else:
            try:
                return InlineImage(base64.b64decode(value["bytes"], validate=True))
            except (binascii.Error, ValueError) as error:
                self.say(f"{name}.bytes is not base64: {error}", 'write {"bytes": base64.b64encode(…).decode()}')
        return None

    def messages(self, value: object, images: tuple[ImageRef, ...]) -> tuple[tuple[Message, ...], tuple[ImageRef, ...]]:
        """Messages and the images that they show, in order.

        Image items either carry their images, or are bare and take those of `images`. Where no item
        stands, the images go before the text of the first user turn, as ms-swift puts them.
        """
        if not isinstance(value, list) or not value:
            self.say(f"messages is {shown(value)}, not a list of messages", 'write [{"role": …, "content": …}, …]')
            return (), images
        before, carried = len(self.problems), list[ImageRef | None]()
        messages = [self.message(item, f"messages[{i}]", carried) for i, item in enumerate(value)]
        if len(self.problems) > before:  # what follows would only echo them
            return (), images
        self.turns([message.role for message in messages])
        own = tuple(image for image in carried if image is not None)
        if not carried:
            return _fronted(messages, len(images)), images
        if own and len(own) < len(carried):
            what = f"{len(own)} of {len(carried)} image items of the messages carry an image"
            self.say(what, 'let all of them carry one, or none ({"type": "image"})')
        elif own and images and own != images:
            self.say("images differs from the images in the messages", "leave images out, or those of the items")
        elif not own and len(images) != len(carried):
            what = f"messages have {len(carried)} image items, and images holds {len(images)}"
            self.say(what, "give one image for each item")
        return tuple(messages), own or images

    def turns(self, roles: list[Role]) -> None:
        spoken = roles[1:] if roles[:1] == ["system"] else roles
        expected = [("user", "assistant")[i % 2] for i in range(len(spoken))]
        for i, (role, wanted) in enumerate(zip(spoken, expected, strict=True)):
            if role != wanted:
                place = i + len(roles) - len(spoken)
                self.say(f'messages[{place}].role is "{role}" where "{wanted}" must stand', _TURNS)
                return
        if not spoken or spoken[-1] != "assistant":
            self.say(f'the last message is of "{roles[-1]}", so there is nothing to learn', _TURNS)

    def message(self, value: object, name: str, carried: list[ImageRef | None]) -> Message:
        if not isinstance(value, dict):
            self.say(f"{name} is {shown(value)}, not an object", 'write {"role": "user", "content": "…"}')
            return Message("user", "")
        fields = self.fields(value, name, ("role", "content"))
        role = fields.get("role")
        if role not in ROLES:
            self.say(f"{name}.role is {shown(role)}", f"write one of {', '.join(ROLES)}")
            role = "user"
        role, content = cast(Role, role), fields.get("content")
        if not isinstance(content, list):
            return Message(role, self.text(content, f"{name}.content", empty=role != "assistant"))
        items = [self.item(item, f"{name}.content[{i}]", role, carried) for i, item in enumerate(content)]
        joined = "".join(item.text for item in items)
        if role == "assistant" and not joined.strip():
            self.say(f"{name}.content is {shown(content)}, an empty answer", "write what the model shall say")
        self.unreserved(joined, f"{name}.content")
        return Message(role, tuple(items))

    def item(self, value: object, name: str, role: Role, carried: list[ImageRef | None]) -> Item:
        kind = value.get("type") if isinstance(value, dict) else None
        if not isinstance(value, dict) or kind not in ("text", "image", "image_url"):
            self.say(
                f"{name} is {shown(value)}",
                'write {"type": "text", "text": …} or {"type": "image", "image": …}; nothing else is trained on',
            )
            return Item("text")
        if kind == "text":
            fields = self.fields(value, name, ("type", "text"))
            text = fields.get("text")
            if isinstance(text, str):
                return Item("text", text)
            self.say(f"{name}.text is {shown(text)}, not a text", 'write {"type": "text", "text": "…"}')
            return Item("text")
        if role != "user":
            self.say(f'{name} is an image in a turn of "{role}"', "show images in user turns")
        carried.append(self.carried(value, name, kind))
        return Item("image")

    def carried(self, value: dict[str, Any], name: str, kind: str) -> ImageRef | None:
        """The image in an item; None for a bare item."""
        if kind == "image" and "url" in value:
            self.say(
                f'{name} is {shown(value)}: the key of the image must be "image"; ms-swift drops "url" in silence',
                f'write {{"type": "image", "image": {shown(value["url"])}}}',
            )
            return None
        image = self.fields(value, name, ("type", kind), "; template.max_pixels sets the size of all images").get(kind)
        if kind == "image_url" and isinstance(image, dict) and list(image) == ["url"]:
            image = image["url"]
        return None if image is None else self.image(image, f"{name}.{kind}")


def _fronted(messages: list[Message], count: int) -> tuple[Message, ...]:
    """Messages with `count` image items before the text of the first user turn."""
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if not count or first is None:
        return tuple(messages)
    content = messages[first].content
    items = (Item("text", content),) if isinstance(content, str) else content
    messages[first] = Message("user", (Item("image"),) * count + items)
    return tuple(messages)
