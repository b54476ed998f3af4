//! JSON-RPC 2.0, as far as it is not input and output: which answer belongs to which request.

use std::collections::BTreeMap;

use rebeam_protocol::id::Seq;
use rebeam_protocol::program::Cancel;
use serde_json::{Value as Json, json};

/// How many messages a batch may have.
const MOST_AT_ONCE: usize = 1000;

/// How much of what makes no sense is shown.
const MOST_SHOWN: usize = 200;

/// What the program says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Said {
    /// The answer to the request that was made for this message.
    Answer(Seq, Result<Json, Failure>),
    /// It asks for something; the answer carries its identifier.
    Request {
        /// As the program has it: a number or text.
        id: Json,
        method: String,
        params: Json,
    },
    Notification {
        method: String,
        params: Json,
    },
    /// The answer to the request that was made for this message, which is none; in words.
    Garbled(Seq, String),
    /// What is no JSON-RPC, or answers nothing that was asked; in words.
    Nonsense(String),
}

/// The error of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) code: i64,
    pub(crate) message: String,
    pub(crate) data: Json,
}

/// The requests that are open.
#[derive(Debug)]
pub(crate) struct Rpc {
    cancel: Cancel,
    last: u64,
    open: BTreeMap<u64, Seq>,
}

impl Rpc {
    pub(crate) fn new(cancel: Cancel) -> Self {
        Rpc { cancel, last: 0, open: BTreeMap::new() }
    }

    /// A request for this message, to be sent.
    pub(crate) fn request(&mut self, seq: Seq, method: &str, params: Json) -> Vec<u8> {
        self.last += 1;
        self.open.insert(self.last, seq);
        let mut message = json!({ "jsonrpc": "2.0", "id": self.last, "method": method });
        with_params(&mut message, params);
        message.to_string().into_bytes()
    }

    /// Nobody waits for the answer any more: what the program is told, if anything.
    pub(crate) fn cancel(&mut self, seq: Seq) -> Option<Vec<u8>> {
        let id = self.open.iter().find_map(|(id, of)| (*of == seq).then_some(*id))?;
        self.open.remove(&id);
        match self.cancel {
            Cancel::Never => None,
            Cancel::Mcp => {
                let params = json!({ "requestId": id, "reason": "nobody waits for the answer any more" });
                Some(notification("notifications/cancelled", params))
            }
            Cancel::Lsp => Some(notification("$/cancelRequest", json!({ "id": id }))),
        }
    }

    /// What a message of the program says; of a batch each part.
    pub(crate) fn hear(&mut self, message: &[u8]) -> Vec<Said> {
        if message.iter().all(u8::is_ascii_whitespace) {
            return Vec::new();
        }
        match serde_json::from_slice(message) {
            Ok(Json::Array(batch)) if batch.len() > MOST_AT_ONCE => {
                vec![Said::Nonsense(format!("a batch of {} messages: it may have {MOST_AT_ONCE}", batch.len()))]
            }
            Ok(Json::Array(batch)) if !batch.is_empty() => batch.into_iter().map(|one| self.hear_one(one)).collect(),
            Ok(one) => vec![self.hear_one(one)],
            Err(error) => {
                let why = format!("no JSON ({error}): {}", shown(message));
                vec![match self.meant(message) {
                    Some(seq) => Said::Garbled(seq, format!("its answer is {why}")),
                    None => Said::Nonsense(why),
                }]
            }
        }
    }

    /// The request that is answered by what is no JSON, such as Python's `NaN`: the only open one whose identifier is in it.
    fn meant(&mut self, message: &[u8]) -> Option<Seq> {
        let text = String::from_utf8_lossy(message);
        let numbers = text.match_indices("\"id\"").filter_map(|(place, key)| {
            let rest = text[place + key.len()..].trim_start().strip_prefix(':')?.trim_start();
            let end = rest.find(|it: char| !it.is_ascii_digit()).unwrap_or(rest.len());
            rest[..end].parse::<u64>().ok()
        });
        let mut open: Vec<u64> = numbers.filter(|id| self.open.contains_key(id)).collect();
        open.dedup();
        match open[..] {
            [id] => self.open.remove(&id),
            _ => None,
        }
    }

    fn hear_one(&mut self, message: Json) -> Said {
        let nonsense = |what: &str, message: &Json| Said::Nonsense(format!("{what}: {}", shown(message.to_string())));
        let Json::Object(mut fields) = message else { return nonsense("no JSON-RPC", &message) };
        let id = fields.remove("id").filter(|id| !id.is_null());
        if let Some(Json::String(method)) = fields.get("method").cloned() {
            let params = fields.remove("params").unwrap_or(Json::Null);
            return match id {
                Some(id) => Said::Request { id, method, params },
                None => Said::Notification { method, params },
            };
        }
        let (result, error) = (fields.remove("result"), fields.remove("error").filter(|error| !error.is_null()));
        if result.is_none() && error.is_none() {
            if let Some(seq) = id.as_ref().and_then(Json::as_u64).and_then(|id| self.open.remove(&id)) {
                return Said::Garbled(seq, "its answer has neither `result` nor `error`".into());
            }
            return nonsense("neither request nor answer", &Json::Object(fields));
        }
        let known = id.as_ref().and_then(Json::as_u64).and_then(|id| self.open.remove(&id));
        let Some(seq) = known else {
            // One that was taken back may be answered all the same.
            let id = id.unwrap_or(Json::Null);
            return match id.as_u64().is_some_and(|id| id > 0 && id <= self.last) {
                true => Said::Nonsense(String::new()),
                false => nonsense("an answer to nothing that was asked", &json!({ "id": id })),
            };
        };
        match error {
            None => Said::Answer(seq, Ok(result.unwrap_or(Json::Null))),
            Some(error) => {
                let text = |message: &Json| message.as_str().map_or_else(|| message.to_string(), str::to_owned);
                let failure = Failure {
                    code: error.get("code").and_then(Json::as_i64).unwrap_or(0),
                    message: error.get("message").map_or_else(|| error.to_string(), text),
                    data: error.get("data").cloned().unwrap_or(Json::Null),
                };
                Said::Answer(seq, Err(failure))
            }
        }
    }
}

/// A notification, to be sent.
pub(crate) fn notification(method: &str, params: Json) -> Vec<u8> {
    let mut message = json!({ "jsonrpc": "2.0", "method": method });
    with_params(&mut message, params);
    message.to_string().into_bytes()
}

/// The answer to a request of the program's, to be sent.
pub(crate) fn answer(id: &Json, result: Result<Json, Failure>) -> Vec<u8> {
    let message = match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(Failure { code, message, data }) => {
            let mut error = json!({ "code": code, "message": message });
            if !data.is_null() {
                error["data"] = data;
            }
            json!({ "jsonrpc": "2.0", "id": id, "error": error })
        }
    };
    message.to_string().into_bytes()
}

fn with_params(message: &mut Json, params: Json) {
    // Parameters are an object or an array, or left out.
    if !params.is_null() {
        message["params"] = params;
    }
}

pub(crate) fn shown(bytes: impl AsRef<[u8]>) -> String {
    let bytes = bytes.as_ref();
    let mut shown = bytes[..bytes.len().min(MOST_SHOWN)].escape_ascii().to_string();
    if bytes.len() > MOST_SHOWN {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(bytes: &[u8]) -> Json {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn answers_find_their_requests_in_any_order() {
        let mut rpc = Rpc::new(Cancel::Never);
        let first = rpc.request(Seq(7), "tools/list", Json::Null);
        assert_eq!(sent(&first), json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }));
        let second = rpc.request(Seq(8), "add", json!([1, 2]));
        assert_eq!(sent(&second)["params"], json!([1, 2]));
        let said = rpc.hear(br#"[{"id":2,"result":3},{"id":1,"error":{"code":-32601,"message":"no","data":[1]}}]"#);
        let failure = Failure { code: -32601, message: "no".into(), data: json!([1]) };
        assert_eq!(said, [Said::Answer(Seq(8), Ok(json!(3))), Said::Answer(Seq(7), Err(failure))]);
        // Once.
        assert_eq!(rpc.hear(br#"{"id":2,"result":3}"#), [Said::Nonsense(String::new())]);
    }

    #[test]
    fn what_is_taken_back_is_told_as_the_protocol_has_it() {
        for (cancel, method, key) in
            [(Cancel::Mcp, "notifications/cancelled", "requestId"), (Cancel::Lsp, "$/cancelRequest", "id")]
        {
            let mut rpc = Rpc::new(cancel);
            rpc.request(Seq(1), "slow", Json::Null);
            let told = sent(&rpc.cancel(Seq(1)).unwrap());
            assert_eq!((&told["method"], &told["params"][key]), (&json!(method), &json!(1)));
            assert_eq!(rpc.cancel(Seq(1)), None);
            // The answer may have been under way.
            assert_eq!(rpc.hear(br#"{"id":1,"result":3}"#), [Said::Nonsense(String::new())]);
        }
        let mut rpc = Rpc::new(Cancel::Never);
        rpc.request(Seq(1), "slow", Json::Null);
        assert_eq!(rpc.cancel(Seq(1)), None);
    }

    #[test]
    fn the_program_asks_and_tells() {
        let mut rpc = Rpc::new(Cancel::Never);
        let said = rpc.hear(br#"{"jsonrpc":"2.0","id":"x","method":"ask","params":{"a":1}}"#);
        assert_eq!(said, [Said::Request { id: json!("x"), method: "ask".into(), params: json!({ "a": 1 }) }]);
        let said = rpc.hear(br#"{"jsonrpc":"2.0","method":"log"}"#);
        assert_eq!(said, [Said::Notification { method: "log".into(), params: Json::Null }]);
        assert_eq!(sent(&answer(&json!("x"), Ok(json!([])))), json!({ "jsonrpc": "2.0", "id": "x", "result": [] }));
        let failure = Failure { code: 1, message: "no".into(), data: Json::Null };
        assert_eq!(sent(&answer(&json!(5), Err(failure)))["error"], json!({ "code": 1, "message": "no" }));
    }

    #[test]
    fn an_answer_that_is_none_fails_its_request() {
        let deep = [b"{\"id\":1,\"result\":", &[b'['; 200][..], &[b']'; 200], b"}"].concat();
        let answers: [&[u8]; 6] = [
            b"{\"id\": 1, \"result\": NaN}",
            b"{\"result\": {\"id\": 77, \"x\": 1e400}, \"id\" : 1}",
            b"{\"id\":1,\"result\":\"\\ud800\"}",
            b"{\"id\":1,\"result\":\"\xff\"}",
            b"{\"id\":1}",
            &deep,
        ];
        for answer in answers {
            let mut rpc = Rpc::new(Cancel::Never);
            rpc.request(Seq(5), "a", Json::Null);
            assert!(matches!(&rpc.hear(answer)[..], [Said::Garbled(Seq(5), _)]), "{:?}", shown(answer));
        }
        // Which of two is not known.
        let mut rpc = Rpc::new(Cancel::Never);
        rpc.request(Seq(5), "a", Json::Null);
        rpc.request(Seq(6), "a", Json::Null);
        assert!(matches!(&rpc.hear(b"{\"id\":1,\"result\":{\"id\":2,\"x\":NaN}}")[..], [Said::Nonsense(_)]));
    }

    #[test]
    fn nonsense_is_named_and_harms_nothing() {
        let mut rpc = Rpc::new(Cancel::Never);
        rpc.request(Seq(1), "a", Json::Null);
        let nonsense: [&[u8]; 7] =
            [b"{\"id\":9,", b"\xff\x00garbage", b"1", b"[]", b"{}", b"{\"id\":99,\"result\":1}", b"{\"result\":1}"];
        for bytes in nonsense {
            let said = rpc.hear(bytes);
            assert!(matches!(&said[..], [Said::Nonsense(text)] if !text.is_empty()), "{said:?}");
        }
        assert_eq!(rpc.hear(b"  \n"), []);
        let batch = format!("[{}]", ["0"; 1001].join(","));
        assert!(matches!(&rpc.hear(batch.as_bytes())[..], [Said::Nonsense(text)] if text.contains("1001")));
        assert_eq!(rpc.hear(b"{\"id\":1,\"result\":null}"), [Said::Answer(Seq(1), Ok(Json::Null))]);
        assert!(shown([b'x'; 1000]).len() < 210);
    }
}
