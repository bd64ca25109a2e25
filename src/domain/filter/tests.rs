//! What filters mean, where they differ from the crate's interpreter, and that nothing makes them costly.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::domain::event::NewEvent;
use crate::domain::fields::{ContentType, Tenant};
use crate::domain::pattern::EventType;

const ORDER: &str = r#"{
    "id": "A-1", "amount": 120, "price": 10.5, "paid": true, "note": null, "name": "Zoë",
    "items": [{"sku": "x", "count": 2}, {"sku": "y", "count": 0}], "tags": ["new", "eu"],
    "at": "2026-01-21T12:30:45.250Z", "big": 18446744073709551615, "empty": {}
}"#;

fn event(payload: &str, content_type: &str) -> NewEvent {
    NewEvent {
        tenant: Tenant::parse("acme").expect("a tenant"),
        event_type: EventType::parse("order.created").expect("a type"),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        content_type: ContentType::parse(content_type).expect("a content type"),
        idempotency_key: None,
        metadata: BTreeMap::from([("region".to_owned(), "eu".to_owned())]),
        source: None,
        endpoint_ids: Vec::new(),
        inline_endpoint: None,
        schedule: Default::default(),
        trace: None,
    }
}

fn judge(filter: &str, payload: &str) -> Result<bool, Failure> {
    let filter = Filter::parse(filter).unwrap_or_else(|problem| panic!("{filter} {problem}"));
    filter.judge(&Facts::of(&event(payload, "")), &mut Budget::default())
}

fn holds(filter: &str) {
    assert_eq!(judge(filter, ORDER), Ok(true), "{filter}");
}

fn fails(filter: &str) {
    assert!(matches!(judge(filter, ORDER), Err(Failure::Unfit(_))), "{filter}");
}

#[test]
fn an_event_is_read_by_its_fields() {
    holds("event.type == 'order.created' && event.tenant == 'acme'");
    holds("event.data.amount > 100 && event.data.paid");
    holds("event.data.items[0].sku == 'x' && event.data['id'] == 'A-1'");
    holds("event.metadata.region == 'eu' && !has(event.metadata.other)");
    holds("has(event.data.note) && event.data.note == null && !has(event.data.missing)");
    holds("has(event.data) && has(event.metadata)");
    holds("'region' in event.metadata && 'eu' in event.data.tags && !('us' in event.data.tags)");
    fails("event.data.missing == 1");
    fails("event.data.missing.more == 1");
    fails("event.data.amount.more == 1");
    fails("event.data.items[2].sku == 'x'");
    fails("event.data.items[-1].sku == 'x'");
}

#[test]
fn a_payload_that_is_not_json_is_bytes() {
    let facts = Facts::of(&event("plain words", "text/plain"));
    for filter in ["string(event.data).contains('words')", "size(event.data) == 11", "type(event.data) == bytes"] {
        let outcome = Filter::parse(filter).expect(filter).judge(&facts, &mut Budget::default());
        assert_eq!(outcome, Ok(true), "{filter}");
    }
    let outcome = Filter::parse("event.data.a == 1").expect("good").judge(&facts, &mut Budget::default());
    assert!(outcome.is_err());
}

#[test]
fn numbers_go_together_whatever_their_type() {
    holds("event.data.price * 2 == 21 && event.data.amount * 1.5 == 180.0 && event.data.amount / 7 == 17");
    holds("event.data.amount == 120.0 && event.data.amount == 120u && event.data.amount != 120.5");
    holds("event.data.big > 9223372036854775807 && event.data.big > 1.0 && event.data.big == 18446744073709551615u");
    holds("9007199254740993 != 9007199254740992.0 && 9007199254740993 > 9007199254740992.0");
    holds("int('12') == 12 && int(12.9) == 12 && uint(3) == 3u && double('1.5') == 1.5 && string(7) == '7'");
    holds("-event.data.amount < 0 && 7 % 4 == 3 && 2 - 3u == -1");
    holds("!(double('NaN') == double('NaN')) && !(double('NaN') < 1) && 1 < double('inf')");
    fails("9223372036854775807 + 1 > 0");
    fails("event.data.amount / 0 == 1");
    fails("int('x') == 1");
    fails("int(1e30) == 1");
    fails("uint(-1) == 1u");
    fails("event.data.name + 1 == ''");
    fails("1 < 'a'");
}

#[test]
fn texts_lists_and_maps_have_their_functions() {
    holds("event.data.name.size() == 3 && size(event.data.tags) == 2 && size(event.data.empty) == 0");
    holds("event.data.id.startsWith('A') && event.data.id.endsWith('1') && event.data.id.contains('-')");
    holds("event.data.id.matches('^[A-Z]-[0-9]+$') && matches(event.type, 'created') && 'É'.matches('(?i)é')");
    holds("event.data.id + '!' == 'A-1!' && 'a' < 'b' && b'ab' == bytes('ab') && b'a' + b'b' == b'ab'");
    holds("[1, 2] + [3] == [1, 2, 3] && {'a': 1, 'b': [2]} == {'b': [2u], 'a': 1.0} && [1] != [2]");
    holds("{'a': 1}.a == 1 && {1: 'x'}[1u] == 'x' && 'a' in {'a': 1} && type(1) == int && type('a') != int");
    holds("event.data.items == event.data.items && event.data.items[0] != event.data.items[1]");
    holds("bool('true') && string(true) == 'true' && string(b'a') == 'a' && dyn(1) == 1 && type({}) == map");
    fails("{'a': 1, 'a': 2} == {}");
    fails("{[]: 1} == {}");
    fails("string(b'\\xff') == ''");
    fails("size(1) == 1");
    fails("event.data.amount.contains('1')");
}

#[test]
fn macros_go_over_lists_and_keys() {
    holds("event.data.items.all(i, i.count >= 0) && event.data.items.exists(i, i.sku == 'y')");
    holds("event.data.items.exists_one(i, i.count > 0) && !event.data.items.all(i, i.count > 0)");
    holds("event.data.items.map(i, i.count) == [2, 0] && event.data.items.filter(i, i.count > 0).size() == 1");
    holds("event.data.items.map(i, i.count > 0, i.sku) == ['x'] && event.data.exists(key, key == 'paid')");
    holds("[1, 2, 3].map(x, [x].map(y, y * x)[0]) == [1, 4, 9] && [[1], [2]].all(event, event.all(x, x > 0))");
    holds("[].all(x, false) && ![].exists(x, true)");
    fails("event.data.amount.all(x, true)");
    fails("event.data.items.map(i, i.missing).size() == 2");
    fails("event.data.items.exists(i, i.missing == 1)");
}

#[test]
fn an_error_does_not_count_where_the_rest_decides() {
    holds("event.data.missing == 1 || true");
    holds("true || event.data.missing == 1");
    holds("!(event.data.missing == 1 && false)");
    holds("event.data.items.exists(i, i.sku == 'y' || i.missing == 1)");
    holds("[0, 2].exists(x, 2 / x == 1) && ![0, 2].all(x, 2 / x == 2)");
    holds("true ? true : event.data.missing");
    fails("event.data.missing == 1 || false");
    fails("event.data.missing == 1 && true");
    fails("event.data.note ? true : false");
    fails("1 == 1 && event.data.amount");
}

#[test]
fn times_and_spans_are_compared_and_computed() {
    holds("timestamp(event.data.at) > timestamp('2026-01-01T00:00:00Z')");
    holds("timestamp(event.data.at) - timestamp('2026-01-21T12:00:00Z') == duration('30m45.25s')");
    holds("timestamp(event.data.at) + duration('1h') < timestamp('2026-01-21T14:00:00+00:00')");
    holds("timestamp(event.data.at).getFullYear() == 2026 && timestamp(event.data.at).getMonth() == 0");
    holds("timestamp(event.data.at).getDate() == 21 && timestamp(event.data.at).getDayOfMonth() == 20");
    holds("timestamp(event.data.at).getDayOfWeek() == 3 && timestamp(event.data.at).getDayOfYear() == 20");
    holds("timestamp(event.data.at).getHours() == 12 && timestamp(event.data.at).getMilliseconds() == 250");
    holds(
        "duration('90m').getHours() == 1 && duration('-1.5h') == duration('-90m') && duration('0') < duration('1ns')",
    );
    holds("timestamp(0) == timestamp('1970-01-01T00:00:00Z') && int(timestamp(7)) == 7");
    holds("string(timestamp(0)) == '1970-01-01T00:00:00Z' && string(duration('1m30s')) == '90s'");
    for bad in ["timestamp('yesterday')", "timestamp(99999999999999)", "timestamp(0) + duration('99999999h')"] {
        fails(&format!("{bad} > timestamp(0)"));
    }
    for bad in ["", "1", "h", "1d", "1h x", "1.2.3s", "999999999999h", "1h0"] {
        fails(&format!("duration('{bad}') > duration('0')"));
    }
}

#[test]
fn what_cannot_be_is_refused_when_it_is_saved_with_its_place() {
    for (filter, place, words) in [
        ("event.data.amount >", "line 1, column 20", "Syntax error"),
        ("event.data.amount > 100 &&\n  evnt.type == 'a'", "line 2, column 3", "evnt is not declared"),
        ("true && event.kind == 'a'", "line 1, column 14", "event has no kind"),
        ("'ä' == 'ä' && event.kind == 'a'", "line 1, column 20", "event has no kind"),
        ("event.data == event", "line 1, column 15", "read by its fields"),
        ("event.type.startWith('a')", "line 1, column 21", "there is no function startWith"),
        ("event.type.matches(event.tenant)", "line 1, column 25", "is no regular expression"),
        ("event.type.matches('(')", "line 1, column 20", "unclosed group"),
        ("event.type.matches('a{1000}{1000}')", "line 1, column 20", "too large"),
        ("event.data.items.all(i)", "line 1, column 21", "x.all(variable, condition)"),
        ("timestamp(event.data.at).getHours('UTC') == 1", "line 1, column 34", "in UTC"),
        ("size(1, 2) == 1", "line 1, column 5", "size(x) or x.size()"),
        ("event.type", "line 1, column 6", "gives a string"),
        ("event.data.amount + 1", "line 1, column 19", "true or false"),
        ("a.b.C{x: 1}", "", ""),
        ("event.data.?a", "", ""),
        ("", "", ""),
    ] {
        let problem = Filter::parse(filter).expect_err(filter).to_string();
        assert!(problem.starts_with("does not compile: "), "{problem}");
        assert!(problem.contains(place) && problem.contains(words), "{filter}: {problem}");
        assert!(problem.len() < 600, "{problem}");
    }
    let long = format!("true{}", " ".repeat(FILTER_BYTES_MAX));
    assert!(Filter::parse(&long).expect_err("too long").to_string().contains("allowed are 2048"));
    let many = ["event.type.matches('a')"; 5].join(" && ");
    assert!(Filter::parse(&many).expect_err("too many").to_string().contains("allowed are 4"));
}

#[test]
fn no_text_overflows_a_stack_or_takes_long_to_compile() {
    // On a thread as small as the runtime's.
    let texts = |bytes: usize| {
        let repeat = |part: &str| part.repeat(bytes / part.len());
        let nested = |open: &str, close: &str| {
            let times = bytes / (open.len() + close.len()) - 2;
            format!("{}true{}", open.repeat(times), close.repeat(times))
        };
        vec![
            repeat("("),
            repeat("["),
            repeat("{"),
            repeat("-"),
            repeat("!("),
            repeat("f("),
            repeat("a.b(c[d{e:"),
            nested("(", ")"),
            nested("[", "]"),
            nested("a.all(x,", ")"),
            format!("{}true", repeat("!")),
            format!("1{}", repeat("+1")),
            format!("event.data{}", repeat(".a")),
            format!("event.data{}", repeat("[0]")),
            format!("event.data{}", repeat(".f()")),
            format!("{}true", repeat("true?false:")),
            format!("true{}", repeat("&&true")),
            format!("'{}", repeat("\\")),
        ]
    };
    let parsing = std::thread::Builder::new().stack_size(1024 * 1024).spawn(move || {
        for text in texts(FILTER_BYTES_MAX - 16) {
            if let Ok(filter) = Filter::parse(&text) {
                let _ = filter.judge(&Facts::of(&event("[]", "")), &mut Budget::default());
            }
        }
    });
    parsing.expect("a thread").join().expect("no panic");
}

/// `[1,1,…]` of so many numbers.
fn ones(count: usize) -> String {
    format!("[{}]", vec!["1"; count].join(","))
}

#[test]
fn a_hostile_filter_ends_by_its_steps() {
    let payload = ones(131_000);
    let text = format!("\"{}\"", "ab".repeat(131_000));
    let object = format!("{{{}}}", (0..20_000).map(|n| format!("\"{n}\":{n}")).collect::<Vec<_>>().join(","));
    for (filter, payload) in [
        ("event.data.all(x, event.data.all(y, event.data.all(z, x + y + z > 0)))", &payload),
        ("event.data.map(x, event.data).size() > 0", &payload),
        ("event.data.map(x, event.data.map(y, [x, y])).size() > 0", &payload),
        ("event.data.filter(x, x in event.data.map(y, y + 1)).size() > 0", &payload),
        ("event.data.all(x, event.data == event.data)", &payload),
        ("[1, 2].all(x, event.data == event.data)", &payload),
        ("event.data + event.data + event.data + event.data == []", &payload),
        ("[1,2,3,4,5,6,7,8,9].map(x, event.data + event.data).size() > 0", &text),
        ("[1,2,3,4,5,6,7,8,9].all(x, event.data.matches('[ab]*a[ab]{500}c'))", &text),
        ("[1,2,3,4,5,6,7,8,9].all(x, event.data.contains('x') || event.data.contains('y') || true)", &text),
        ("[1,2,3,4,5,6,7,8,9].all(x, event.data == event.data && size(event.data) > 0)", &object),
        ("event.data.all(k, event.data.all(l, k != l || k == l))", &object),
    ] {
        assert_eq!(judge(filter, payload), Err(Failure::TooCostly), "{filter}");
    }
    assert_eq!(judge("event.data.all(x, true) || true", &payload), Err(Failure::TooCostly), "no error like others");
    // And what is no hostility is well within them.
    assert_eq!(judge("event.data.all(x, x == 1)", &ones(10_000)), Ok(true));
    assert_eq!(judge("event.data.map(x, x * 2).filter(x, x > 0).size() == 5000", &ones(5_000)), Ok(true));
}

#[test]
fn a_costly_filter_leaves_others_what_is_always_theirs() {
    let facts = Facts::of(&event(&ones(131_000), ""));
    let costly = Filter::parse("event.data.all(x, true)").expect("good");
    let modest = Filter::parse("event.type == 'order.created'").expect("good");
    let mut budget = Budget::default();
    for _ in 0..100 {
        assert_eq!(costly.judge(&facts, &mut budget), Err(Failure::TooCostly));
        assert_eq!(modest.judge(&facts, &mut budget), Ok(true));
    }
    assert_eq!(budget.grant(), STEPS_ALWAYS);
}

#[test]
fn a_stored_filter_that_no_longer_compiles_fails_and_ends_nothing() {
    let facts = Facts::of(&event("{}", ""));
    let outcome = Filter::from_stored("event.").judge(&facts, &mut Budget::default());
    assert_eq!(outcome, Err(Failure::Unfit("it does not compile")));
}

/// A value for the crate's interpreter: numbers as ours are.
fn to_cel(json: &serde_json::Value) -> cel::Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => cel::Value::Null,
        Json::Bool(value) => (*value).into(),
        Json::Number(number) => match number.as_i64() {
            Some(int) => int.into(),
            None => number.as_f64().expect("a number").into(),
        },
        Json::String(text) => text.clone().into(),
        Json::Array(items) => items.iter().map(to_cel).collect::<Vec<_>>().into(),
        Json::Object(entries) => {
            entries.iter().map(|(key, value)| (key.clone(), to_cel(value))).collect::<HashMap<_, _>>().into()
        }
    }
}

/// What the crate's interpreter makes of a filter: a truth, or nothing.
fn by_the_crate(filter: &str, payload: &str) -> Option<bool> {
    let data: serde_json::Value = serde_json::from_str(payload).expect("JSON");
    let event = serde_json::json!({
        "type": "order.created", "tenant": "acme", "metadata": {"region": "eu"}, "data": data,
    });
    let mut context = cel::Context::with_env(Arc::new(cel::Env::stdlib()));
    context.add_variable_from_value("event", to_cel(&event));
    match cel::Program::compile(filter).expect(filter).execute(&context) {
        Ok(cel::Value::Bool(truth)) => Some(truth),
        _ => None,
    }
}

const SMALL: &str = r#"{"a": 1, "b": -2, "f": 1.5, "s": "ab", "t": true, "n": null, "l": [1, 2, 3], "m": {"k": "ab"}}"#;

/// Expressions that are mostly meaningful: numbers of one type, and of each kind of value some.
fn expressions() -> impl Strategy<Value = String> {
    let ints = prop_oneof![
        Just("event.data.a".to_owned()),
        Just("event.data.b".to_owned()),
        Just("size(event.data.l)".to_owned()),
        Just("event.data.missing".to_owned()),
        (-3i64..4).prop_map(|int| format!("({int})")),
    ];
    let int = ints.prop_recursive(2, 8, 2, |inner| {
        (inner.clone(), prop_oneof![Just("+"), Just("-"), Just("*"), Just("/"), Just("%")], inner)
            .prop_map(|(a, operator, b)| format!("({a} {operator} {b})"))
    });
    let text = prop_oneof![
        Just("event.type".to_owned()),
        Just("event.data.s".to_owned()),
        Just("event.data.m.k".to_owned()),
        Just("'ab'".to_owned()),
        Just("('a' + event.data.s)".to_owned()),
    ];
    let list = prop_oneof![
        Just("event.data.l".to_owned()),
        Just("[1, 2]".to_owned()),
        Just("[]".to_owned()),
        Just("event.data.l.map(x, x + 1)".to_owned()),
        Just("event.data.l.filter(x, x > 1)".to_owned()),
    ];
    let compared = prop_oneof![Just("=="), Just("!="), Just("<"), Just("<="), Just(">"), Just(">=")];
    let truth = prop_oneof![
        (int.clone(), compared.clone(), int.clone()).prop_map(|(a, operator, b)| format!("{a} {operator} {b}")),
        (text.clone(), compared, text.clone()).prop_map(|(a, operator, b)| format!("{a} {operator} {b}")),
        (text.clone(), text.clone()).prop_map(|(a, b)| format!("{a}.contains({b})")),
        (text.clone(), text).prop_map(|(a, b)| format!("{a}.startsWith({b})")),
        (int.clone(), list.clone()).prop_map(|(a, b)| format!("{a} in {b}")),
        (list.clone(), list.clone()).prop_map(|(a, b)| format!("{a} == {b}")),
        (list.clone(), int.clone()).prop_map(|(a, b)| format!("{a}.all(x, x >= {b})")),
        (list.clone(), int.clone()).prop_map(|(a, b)| format!("{a}.exists(x, 2 / (x - {b}) == 1)")),
        (list, int).prop_map(|(a, b)| format!("{a}.exists_one(x, x == {b})")),
        Just("event.data.t".to_owned()),
        Just("event.data.n == null".to_owned()),
        Just("event.data.missing".to_owned()),
        Just("has(event.data.missing)".to_owned()),
        Just("has(event.data.m.k)".to_owned()),
    ];
    truth.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            inner.prop_map(|a| format!("!({a})")),
        ]
    })
}

proptest! {
    #[test]
    fn filters_mean_what_the_crates_interpreter_says(filter in expressions()) {
        prop_assume!(filter.len() <= FILTER_BYTES_MAX);
        match Filter::parse(&filter) {
            Ok(parsed) => {
                let outcome = parsed.judge(&Facts::of(&event(SMALL, "")), &mut Budget::default());
                prop_assert_eq!(outcome.ok(), by_the_crate(&filter, SMALL), "{}", filter);
            }
            Err(problem) => prop_assert!(problem.to_string().contains("nested"), "{}: {}", filter, problem),
        }
    }

    #[test]
    fn whatever_is_no_filter_is_refused_and_ends_nothing(text in r#"[a-z0-9.()\[\]{}'"\\+*/%<>=!&|?:, é-]{0,60}"#) {
        if let Ok(filter) = Filter::parse(&text) {
            let _ = filter.judge(&Facts::of(&event(SMALL, "")), &mut Budget::default());
        }
    }
}
