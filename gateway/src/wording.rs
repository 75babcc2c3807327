//! Pure. What serde and serde_json say of a value, in the words of the contract: theirs name Rust types and change with a
//! release.

use serde_json::error::Category;

/// What is wrong with one value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wording<'a> {
    /// For programs.
    pub(crate) code: &'static str,
    /// The field that serde names, where it names one.
    pub(crate) named: Option<&'a str>,
    /// For people; it reads after the name of the field.
    pub(crate) message: String,
}

/// Says what serde says of a value. `parts`: what the fields of the whole are called.
pub(crate) fn of_value<'a>(said: &'a str, parts: &str) -> Wording<'a> {
    let said = without_place(said);
    let wording = |code, named, message| Wording { code, named, message };
    let named = || said.split('`').nth(1);
    if said.starts_with("unknown field") {
        let known = match alternatives(said).as_str() {
            "" => format!("is unknown: there are no {parts}"),
            known => format!("is unknown: the {parts} are {known}"),
        };
        return wording("unknown_field", named(), known);
    }
    if said.starts_with("missing field") {
        return wording("missing_field", named(), "must be given".to_owned());
    }
    if said.starts_with("duplicate field") {
        return wording("duplicate_field", named(), "must be given once only".to_owned());
    }
    if said.starts_with("unknown variant") {
        return wording("invalid_value", None, format!("must be one of {}", alternatives(said)));
    }
    if let Some((found, expected)) = said.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected ")) {
        return wording("invalid_type", None, format!("must be {}, not {}", wanted(expected), given(found)));
    }
    let of_serde = ["invalid value: ", "invalid length "].iter().any(|begin| said.starts_with(begin));
    let message = match said.rsplit_once(", expected ").map(|(_, expected)| wanted(expected)) {
        // Of that type, and too large or too small for it.
        Some(number) if of_serde && number == WHOLE_NUMBER => WITHIN_BOUNDS.to_owned(),
        Some(wanted) if of_serde => wanted,
        _ => custom(said),
    };
    wording("invalid_value", None, format!("must be {message}"))
}

/// Says where and why a text is no JSON.
pub(crate) fn of_syntax(error: &serde_json::Error) -> String {
    let said = error.to_string();
    let why = match without_place(&said) {
        _ if error.classify() == Category::Eof => "it ends before it is complete",
        "expected value" | "expected ident" => "there is no value that JSON has",
        "key must be a string" => "a name in double quotes must stand here",
        "expected `:`" => "a colon must stand behind a name",
        "trailing comma" => "nothing stands behind a comma",
        "trailing characters" => "there is more after the end of the document",
        "invalid number" | "number out of range" => "that is no number",
        "recursion limit exceeded" => "it is nested too deeply",
        said if said.starts_with("expected `,`") => "a comma or the closing bracket is missing",
        said if said.starts_with("control character") => "a control character in a string must be escaped",
        said if said.contains("escape") || said.contains("surrogate") => "that is no escape in a string",
        _ => "that is no JSON",
    };
    format!("the body is no JSON: line {}, column {}: {why}", error.line(), error.column())
}

/// What serde_json says, without the place that it adds.
fn without_place(said: &str) -> &str {
    let place = |said: &'_ str| {
        let (before, after) = said.rsplit_once(" at line ")?;
        let (line, column) = after.split_once(" column ")?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (is_number(line) && is_number(column)).then_some(before.len())
    };
    place(said).map_or(said, |end| &said[..end])
}

/// The words in back quotes behind "expected".
fn alternatives(said: &str) -> String {
    let known = said.rsplit_once(", expected ").map_or("", |(_, known)| known);
    known.split('`').skip(1).step_by(2).collect::<Vec<_>>().join(", ")
}

/// What serde expected.
fn wanted(expected: &str) -> String {
    const NUMBERS: [&str; 12] = ["i8", "i16", "i32", "i64", "i128", "isize", "u8", "u16", "u32", "u64", "u128", "usize"];
    match expected {
        "a string" | "a borrowed string" | "a character" | "string or map" | "variant identifier" => "a string".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        number if NUMBERS.contains(&number) => WHOLE_NUMBER.to_owned(),
        expected if expected.starts_with("struct ") => "an object".to_owned(),
        expected if expected.contains("UUID") => ID.to_owned(),
        expected if expected.contains("timestamp") => TIME.to_owned(),
        _ => "of another kind".to_owned(),
    }
}

const ID: &str = "an id (a UUID)";
const TIME: &str = "a time as in 2026-01-31T12:00:00Z";
const WHOLE_NUMBER: &str = "a whole number";
const WITHIN_BOUNDS: &str = "a whole number within bounds";

/// What serde found.
fn given(found: &str) -> &'static str {
    match found.split([' ', '`']).next().unwrap_or_default() {
        "integer" | "number" => "a number",
        "floating" => "a fraction",
        "string" | "character" => "a string",
        "boolean" => "a boolean",
        "null" | "unit" | "Option" => "null",
        "sequence" => "a list",
        "map" => "an object",
        _ => "this",
    }
}

/// What a type says that reads itself from a text.
fn custom(said: &str) -> String {
    let said = said.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["uuid"]) {
        ID.to_owned()
    } else if has(&["`true` or `false`"]) {
        "true or false".to_owned()
    } else if has(&["too large", "too small"]) {
        WITHIN_BOUNDS.to_owned()
    } else if has(&["digit", "integer"]) && !has(&["date", "time", "year", "offset"]) {
        WHOLE_NUMBER.to_owned()
    } else if has(&["date", "time", "year", "month", "day", "hour", "offset", "zone"]) {
        TIME.to_owned()
    } else {
        "of the form that the contract describes".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only what is wrong with it is looked at")]
    struct Sample {
        #[serde(default)]
        text: String,
        flag: Option<bool>,
        count: Option<u32>,
        share: Option<f64>,
        list: Option<Vec<String>>,
        inner: Option<Inner>,
        order: Option<Order>,
        id: Option<uuid::Uuid>,
        at: Option<jiff::Timestamp>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only what is wrong with it is looked at")]
    struct Inner {
        name: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Order {
        New,
        Top,
    }

    /// Words that are serde's, or Rust's.
    const RAW: [&str; 12] = [
        "line",
        "column",
        "expected",
        "invalid",
        "struct",
        "u32",
        "sequence",
        "variant",
        "parsing",
        "failed",
        "Deserialize",
        "`",
    ];

    fn of_json(json: &str) -> String {
        let said = serde_json::from_str::<Sample>(json).unwrap_err().to_string();
        let message = of_value(&said, "fields").message;
        assert!(!RAW.iter().any(|raw| message.contains(raw)), "{json}: {message}");
        message
    }

    #[test]
    fn a_wrong_value_is_described_in_the_words_of_json() {
        for (json, message) in [
            (r#"{"text":1}"#, "must be a string, not a number"),
            (r#"{"text":null}"#, "must be a string, not null"),
            (r#"{"text":{}}"#, "must be a string, not an object"),
            (r#"{"flag":"yes"}"#, "must be true or false, not a string"),
            (r#"{"count":"1"}"#, "must be a whole number, not a string"),
            (r#"{"count":-1}"#, "must be a whole number within bounds"),
            (r#"{"count":1.5}"#, "must be a whole number, not a fraction"),
            (r#"{"share":[]}"#, "must be a number, not a list"),
            (r#"{"list":"a"}"#, "must be a list, not a string"),
            (r#"{"list":[true]}"#, "must be a string, not a boolean"),
            (r#"{"inner":3}"#, "must be an object, not a number"),
            (r#"{"inner":{}}"#, "must be given"),
            (r#"{"order":"best"}"#, "must be one of new, top"),
            (r#"{"id":"x"}"#, "must be an id (a UUID)"),
            (r#"{"id":7}"#, "must be an id (a UUID), not a number"),
            (r#"{"at":"yesterday"}"#, "must be a time as in 2026-01-31T12:00:00Z"),
            (r#"{"at":"2026-02-31T12:00:00Z"}"#, "must be a time as in 2026-01-31T12:00:00Z"),
            (r#"{"text":"","text":""}"#, "must be given once only"),
        ] {
            assert_eq!(of_json(json), message, "{json}");
        }
        let unknown = of_json(r#"{"colour":1}"#);
        assert!(unknown.starts_with("is unknown: the fields are text, flag, count"), "{unknown}");
    }

    #[test]
    fn a_field_is_named_where_serde_names_it() {
        let said = |json| serde_json::from_str::<Sample>(json).unwrap_err().to_string();
        let named = |said: &str| (of_value(said, "fields").code, of_value(said, "fields").named.map(str::to_owned));
        assert_eq!(named(&said(r#"{"colour":1}"#)), ("unknown_field", Some("colour".to_owned())));
        assert_eq!(named(&said(r#"{"inner":{}}"#)), ("missing_field", Some("name".to_owned())));
        assert_eq!(named(&said(r#"{"text":1}"#)), ("invalid_type", None));
    }

    #[test]
    fn broken_json_is_described_by_its_place_and_its_fault() {
        for (json, said) in [
            (r#"{"text": "#, "line 1, column 9: it ends before it is complete"),
            ("", "it ends before it is complete"),
            ("{\n\"text\": x}", "line 2, column 9: there is no value that JSON has"),
            (r#"{text: 1}"#, "a name in double quotes"),
            (r#"{"text" 1}"#, "a colon must stand"),
            (r#"{"text": "a",}"#, "nothing stands behind a comma"),
            (r#"{"text": "a" "flag"}"#, "a comma or the closing bracket is missing"),
            (r#"{"text": "a"} x"#, "more after the end"),
            ("{\"text\": \"a\nb\"}", "a control character"),
            (r#"{"text": "\x"}"#, "no escape"),
            (r#"{"count": 01}"#, "that is no number"),
        ] {
            let error = serde_json::from_str::<Sample>(json).unwrap_err();
            let told = of_syntax(&error);
            assert!(told.contains(said), "{json}: {told}");
        }
    }

    #[test]
    fn a_place_that_a_client_wrote_is_left_alone() {
        assert_eq!(without_place("unknown field `x at line 1 column y`"), "unknown field `x at line 1 column y`");
        assert_eq!(without_place("x at line 1 column 2"), "x");
    }
}
