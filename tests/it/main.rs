//! The one integration binary. Stories run on real databases, both engines, a fresh one for each test;
//! everything that is logged anywhere is captured and searched for card data.

#[macro_use]
mod support;
mod cvv;
mod events;
mod main_job;
mod no_double_charge;
mod payments;
mod scrubbing;
mod support_self_test;
