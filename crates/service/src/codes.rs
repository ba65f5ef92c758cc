//! What follows from which error it is, written once for the dialects that have a table of them.

/// Makes the enum `Code` of a dialect. Each row is one error: its name on the wire (that of the row, if no other is given), its HTTP status, and how
/// the audit log classes it.
#[macro_export]
macro_rules! error_codes {
    ($(#[$about:meta])* $($code:ident $(= $name:literal)?, $status:ident, $outcome:ident;)*) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[allow(missing_docs, reason = "the names are the API's")]
        pub enum Code {
            $($code,)*
        }

        impl Code {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$code,)*];

            /// On the wire.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$code => $crate::error_codes!(@name $code $($name)?),)*
                }
            }

            /// HTTP status.
            #[must_use]
            pub fn status(self) -> ::http::StatusCode {
                match self {
                    $(Self::$code => ::http::StatusCode::$status,)*
                }
            }

            pub(crate) fn outcome(self) -> ::holdfast_core::AuditOutcome {
                match self {
                    $(Self::$code => ::holdfast_core::AuditOutcome::$outcome,)*
                }
            }
        }
    };
    (@name $code:ident $name:literal) => {
        $name
    };
    (@name $code:ident) => {
        stringify!($code)
    };
}
