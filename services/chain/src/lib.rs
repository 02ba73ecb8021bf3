//! Services in a chain, whose handlers spawn, join, select, cancel and call at random, and that keep
//! a record of their own: each span says which span should be its parent.
//!
//! A request is `/{key}/{from}/{carries}/{n}?seed=S&unread=U&body=B`:
//!
//! - `n`: the request that a user sent. All that comes of it carries this number.
//! - `key`: names this call among all calls and manual spans of the request. Keys are unique in it.
//! - `from`: the key of what is active in the caller when it calls: a manual span, or the call that
//!   the caller serves. `none` where it calls outside any request.
//! - `carries`: `own` where the caller writes the context of `from` into the headers by itself, `wire`
//!   where it writes none.
//! - `seed`: decides all that the handler does, but for the order in which things happen to run.
//! - `unread`: out of 100 calls that the handler makes, how many leave the answer's body unread.
//! - `body`: how many bytes an answer has at most, and a request that has a body.
//!
//! A manual span has the attributes `request.number`, `key` and `expected.parent` (a key, or `none`).

pub mod axum_service;
pub mod record;
pub mod service;
pub mod work;
