//! The one integration binary. Stories run on real databases, both engines, a fresh one for each test;
//! what is logged anywhere is captured and searched for card data. Too long for that are the simulation and
//! the durability tests: there the files are searched, those of the databases, the killed programs' log. Stories
//! of the store alone, such as half of those of the event feed, have no card in them.

#[macro_use]
mod support;
mod agreements;
mod audit;
mod authorizations;
mod bad_input;
mod cards;
mod certificates;
mod command_line;
mod cvv;
mod deployed_database;
mod dev;
mod doctor;
mod durability;
mod egress;
mod events;
mod features;
mod group_commit;
mod hostile;
mod import;
mod isolation;
mod keys;
mod late_words;
mod main_job;
mod memory;
mod no_double_charge;
mod notifications;
mod operations;
mod ops_plane;
mod outage;
mod payments;
mod retention;
mod sabotage;
mod scrubbing;
mod sealing;
mod simulation;
mod support_self_test;
mod sweeps;
