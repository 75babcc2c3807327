//! Rows of a batch as columns, for `UNNEST`: one statement takes any number of them.

use tokio_postgres::types::ToSql;

/// A statement's part that writes the rows of one table.
pub trait Table: Send + Sync {
    /// The part's SQL; `{rows}` stands for the row source, to be used as a table.
    fn template(&self) -> &'static str;
    /// Name and Postgres type of every column, in order.
    fn columns(&self) -> &'static [(&'static str, &'static str)];
    /// The columns' values, in the same order.
    fn params(&self) -> Vec<&(dyn ToSql + Sync)>;
    /// How many rows there are.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// All tables that a service's batch may write.
pub trait Tables: Default + Send + Sync + 'static {
    /// The tables, always the same ones in the same order: their numbers say which of them a statement writes to.
    fn tables(&self) -> Vec<&dyn Table>;
    /// Takes over a copy of a unit's rows, whose last record is `seq`; the unit keeps its own, for a retry.
    fn append(&mut self, other: &Self, seq: crate::ids::Seq);
}

/// The text of the statement parts of these tables: `name AS (…)`, parameters numbered from `first`.
pub(crate) fn parts(tables: &[&dyn Table], first: usize) -> Vec<String> {
    let mut next = first;
    tables
        .iter()
        .enumerate()
        .map(|(n, table)| {
            let columns = table.columns();
            let types: Vec<String> =
                columns.iter().enumerate().map(|(i, (_, kind))| format!("${}::{kind}[]", next + i)).collect();
            let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
            next += columns.len();
            let rows = format!("UNNEST({}) AS r({})", types.join(", "), names.join(", "));
            format!("t{n} AS ({})", table.template().replace("{rows}", &rows))
        })
        .collect()
}

/// Declares a row, its columns, and the SQL that writes them.
///
/// ```ignore
/// table! {
///     /// Likes to store.
///     pub struct Likes of Like { post: Uuid => "uuid", user: Uuid => "uuid" }
///     "INSERT INTO post_like (post, user_id) SELECT post, user FROM {rows}"
/// }
/// ```
macro_rules! table {
    ($(#[$doc:meta])* $vis:vis struct $columns:ident of $row:ident { $($field:ident: $type:ty => $sql:literal),+ $(,)? } $template:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        $vis struct $row { $(pub(crate) $field: $type),+ }

        $(#[$doc])*
        #[derive(Debug, Default)]
        $vis struct $columns { $($field: Vec<$type>),+ }

        impl $columns {
            #[allow(dead_code, reason = "not every table is written row by row")]
            $vis fn push(&mut self, row: $row) {
                $(self.$field.push(row.$field);)+
            }

            #[allow(dead_code, reason = "the tables of the log are only written row by row")]
            $vis fn append(&mut self, other: &Self) {
                $(self.$field.extend(other.$field.iter().cloned());)+
            }
        }

        impl $crate::table::Table for $columns {
            fn template(&self) -> &'static str {
                $template
            }

            fn columns(&self) -> &'static [(&'static str, &'static str)] {
                &[$((stringify!($field), $sql)),+]
            }

            fn params(&self) -> Vec<&(dyn tokio_postgres::types::ToSql + Sync)> {
                vec![$(&self.$field as &(dyn tokio_postgres::types::ToSql + Sync)),+]
            }

            fn len(&self) -> usize {
                [$(self.$field.len()),+][0]
            }
        }
    };
}

/// Bundles the tables of a service.
macro_rules! tables {
    ($(#[$doc:meta])* $vis:vis struct $name:ident { $($field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        $vis struct $name { $(pub(crate) $field: $type),+ }

        impl $crate::table::Tables for $name {
            fn tables(&self) -> Vec<&dyn $crate::table::Table> {
                vec![$(&self.$field),+]
            }

            fn append(&mut self, other: &Self, _: $crate::ids::Seq) {
                $(self.$field.append(&other.$field);)+
            }
        }
    };
}

/// Lets a checked text be a parameter.
macro_rules! text_params {
    ($($type:ty),+) => {$(
        impl tokio_postgres::types::ToSql for $type {
            fn to_sql(
                &self,
                kind: &tokio_postgres::types::Type,
                out: &mut bytes::BytesMut,
            ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
                self.as_str().to_sql(kind, out)
            }

            fn accepts(kind: &tokio_postgres::types::Type) -> bool {
                <&str as tokio_postgres::types::ToSql>::accepts(kind)
            }

            tokio_postgres::types::to_sql_checked!();
        }
    )+};
}

pub(crate) use {table, tables, text_params};
