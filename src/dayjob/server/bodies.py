"""What clients of the Assistants wire send, and its limits. Null is taken where they send it, and more is ignored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from dayjob.errors import InputError
from dayjob.limits import MOST
from dayjob.server.errors import AS_IT_IS
from dayjob.tools import ClientTool

FORMATS = ("text", "json_object", "json_schema")
CHOICES = ("none", "auto", "required")
CHOSEN = ("function", "file_search", "code_interpreter")
MOST_TOOLS, MOST_TOOLS_OF_A_RUN = 128, 20


class Body(BaseModel):
    """A body, or a part of one."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    @property
    def given(self) -> dict[str, Any]:
        """What the client gave, and nothing else."""
        return self.model_dump(exclude_unset=True)


class Kept(Body):
    """A part that is kept as it came, with what is not known here too."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


def _with_example(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError(AS_IT_IS, "{message}", {"message": message})


# --- parts -----------------------------------------------------------------------------------------

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
Instructions = Annotated[str, Field(max_length=256_000)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(ge=0, le=1)]
MostTokens = Annotated[int, Field(ge=1, le=MOST)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Function(Kept):
    """A function that the client, or this server, executes."""

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class FunctionTool(Body):
    """A function, as a tool."""

    type: Literal["function"]
    function: Function

    @classmethod
    def check(cls, tool: FunctionTool) -> FunctionTool:
        try:
            ClientTool.of(tool.given)
        except InputError as problem:
            raise _wrong(problem.message) from None
        return tool


class CodeInterpreterTool(Kept):
    """Taken and echoed; not offered to the model."""

    type: Literal["code_interpreter"]


class FileSearchTool(Kept):
    """Taken and echoed; not offered to the model."""

    type: Literal["file_search"]


def _unlike(tools: Sequence[Any]) -> Sequence[Any]:
    names = [tool.function.name for tool in tools if isinstance(tool, FunctionTool)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise _wrong(f"Invalid 'tools': {twice!r} stands for more than one function.")
    return tools


Tool = Annotated[
    Annotated[FunctionTool, AfterValidator(FunctionTool.check)] | CodeInterpreterTool | FileSearchTool,
    Field(discriminator="type"),
]
Tools = Annotated[list[Tool], Field(max_length=MOST_TOOLS), AfterValidator(_unlike)]
ToolsOfARun = Annotated[list[Tool], Field(max_length=MOST_TOOLS_OF_A_RUN), AfterValidator(_unlike)]


class CodeInterpreterFiles(Kept):
    file_ids: Annotated[list[str], Field(max_length=20)] | None = None


class FileSearchStores(Kept):
    vector_store_ids: Annotated[list[str], Field(max_length=1)] | None = None
    vector_stores: list[Any] | None = None


class ToolResources(Kept):
    """Kept and echoed. Vector stores are not made here."""

    code_interpreter: CodeInterpreterFiles | None = None
    file_search: FileSearchStores | None = None

    @classmethod
    def check(cls, resources: ToolResources) -> ToolResources:
        if resources.file_search is not None and resources.file_search.vector_stores:
            raise _wrong(
                "Invalid 'tool_resources.file_search.vector_stores': this server has no vector stores. Leave it "
                "out; 'vector_store_ids' are kept and echoed."
            )
        return resources


Resources = Annotated[ToolResources, AfterValidator(ToolResources.check)]


def _format(given: Any) -> Any:
    if given is None or given == "auto" or (isinstance(given, dict) and given.get("type") in FORMATS):
        return given
    raise _wrong(f"Invalid 'response_format': expected 'auto', or an object whose type is one of {FORMATS}.")


def _choice(given: Any) -> Any:
    if given is None or (isinstance(given, str) and given in CHOICES):
        return given
    chosen = given.get("type") if isinstance(given, dict) else None
    if chosen in CHOSEN and (chosen != "function" or isinstance(given.get("function"), dict)):
        return given
    raise _wrong(f"Invalid 'tool_choice': expected one of {CHOICES}, or an object that names a tool.")


ResponseFormat = Annotated[Any, AfterValidator(_format)]
ToolChoice = Annotated[Any, AfterValidator(_choice)]


class Truncation(Body):
    """How much of the thread is told to the model."""

    type: Literal["auto", "last_messages"]
    last_messages: Annotated[int, Field(ge=1)] | None = None

    @classmethod
    def check(cls, strategy: Truncation) -> Truncation:
        if strategy.type == "last_messages" and strategy.last_messages is None:
            raise _wrong("Invalid 'truncation_strategy': 'last_messages' needs the number of them.")
        return strategy


# --- messages --------------------------------------------------------------------------------------


def _value(given: Any) -> Any:
    """A text, also in the form in which it is answered."""
    return given.get("value") if isinstance(given, dict) else given


class TextPart(Body):
    type: Literal["text"]
    text: Annotated[str, BeforeValidator(_value)]


class ImageURL(Body):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImageURLPart(Body):
    type: Literal["image_url"]
    image_url: ImageURL


class ImageFile(Body):
    file_id: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImageFilePart(Body):
    type: Literal["image_file"]
    image_file: ImageFile


def _parts(given: Any) -> Any:
    if given == "":
        raise _wrong("Message content must be non-empty.")
    return [{"type": "text", "text": given}] if isinstance(given, str) else given


Part = Annotated[TextPart | ImageURLPart | ImageFilePart, Field(discriminator="type")]
Content = Annotated[
    list[Part], BeforeValidator(_parts, json_schema_input_type=str | list[Part]), Field(min_length=1)
]


class Attachment(Kept):
    """Kept and echoed; not offered to the model."""

    file_id: str | None = None
    tools: list[Annotated[CodeInterpreterTool | FileSearchTool, Field(discriminator="type")]] | None = None


class NewMessage(Body):
    """A message to be added to a thread."""

    model_config = _with_example({"role": "user", "content": "Where is A-1042?"})

    role: Literal["user", "assistant"]
    content: Content
    attachments: list[Attachment] | None = None
    metadata: Metadata | None = None

    @property
    def message(self) -> dict[str, Any]:
        """As models are told it."""
        parts = [part.model_dump() for part in self.content]
        alone = len(parts) == 1 and parts[0]["type"] == "text"
        return {"role": self.role, "content": parts[0]["text"] if alone else parts}

    @property
    def details(self) -> dict[str, Any]:
        """What is kept with it besides."""
        kept = {"metadata": self.metadata, "attachments": self.given.get("attachments")}
        return {name: value for name, value in kept.items() if value}


# --- assistants and threads ------------------------------------------------------------------------


class ChangedAssistant(Body):
    """What of an assistant is to be another; what is not given stays."""

    model_config = _with_example({"instructions": "Be thorough."})

    model: Annotated[str, Field(min_length=1)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    description: Annotated[str, Field(max_length=512)] | None = None
    instructions: Instructions | None = None
    reasoning_effort: Effort | None = None
    tools: Tools | None = None
    tool_resources: Resources | None = None
    metadata: Metadata | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    response_format: ResponseFormat = None


class NewAssistant(ChangedAssistant):
    """A new assistant."""

    model_config = _with_example({"model": "gpt-4o", "name": "Tutor", "instructions": "Be brief."})

    model: Annotated[str, Field(min_length=1)]


class ChangedMetadata(Body):
    """Metadata, which is replaced as a whole."""

    model_config = _with_example({"metadata": {"customer": "17"}})

    metadata: Metadata | None = None


class ChangedThread(ChangedMetadata):
    """What of a thread is to be another."""

    model_config = _with_example({"metadata": {"customer": "17"}})

    tool_resources: Resources | None = None


class NewThread(ChangedThread):
    """A new thread, with its first messages."""

    model_config = _with_example({"messages": [{"role": "user", "content": "Where is A-1042?"}]})

    messages: list[NewMessage] | None = None


# --- runs ------------------------------------------------------------------------------------------


class NewRunOfAnyThread(Body):
    """A run of an assistant; what is given here takes the place of what the assistant says."""

    assistant_id: str
    model: Annotated[str, Field(min_length=1)] | None = None
    instructions: Instructions | None = None
    reasoning_effort: Effort | None = None
    tools: ToolsOfARun | None = None
    metadata: Metadata | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stream: bool | None = None
    max_prompt_tokens: MostTokens | None = None
    max_completion_tokens: MostTokens | None = None
    truncation_strategy: Annotated[Truncation, AfterValidator(Truncation.check)] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat = None


class NewRun(NewRunOfAnyThread):
    """A run of a thread that is there."""

    model_config = _with_example({"assistant_id": "asst_06bq3x0k8d4m2r7v9tza1ce", "stream": False})

    additional_instructions: Instructions | None = None
    additional_messages: list[NewMessage] | None = None


class NewThreadAndRun(NewRunOfAnyThread):
    """A thread, and its first run."""

    model_config = _with_example(
        {
            "assistant_id": "asst_06bq3x0k8d4m2r7v9tza1ce",
            "thread": {"messages": [{"role": "user", "content": "Where is A-1042?"}]},
        }
    )

    thread: NewThread | None = None
    tool_resources: Resources | None = None


class ToolOutput(Body):
    tool_call_id: str
    output: str | None = None


class ToolOutputs(Body):
    """What the client's tools gave."""

    model_config = _with_example(
        {"tool_outputs": [{"tool_call_id": "call_1", "output": "It is on its way."}]}
    )

    tool_outputs: list[ToolOutput]
    stream: bool | None = None
