//! Notifications: verified over the raw body and the path that the gateway called, durable before they are
//! acknowledged, and without any effect that they should not have.

mod table;

both_engines! {
    /// Every row of the table: the answer, the status, the events, and whether the gateway is asked.
    async fn the_table_holds(db: Database) {
        table::hold(db).await;
    }
}
