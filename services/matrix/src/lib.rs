//! What both services share: the SDK under its usual names whatever its version, and an HTTP server.

mod export;
mod serve;

pub use export::Providers;
pub use serve::{pause, runtime, serve};

macro_rules! sdk {
    ($feature:literal, $api:path, $sdk:path, $tracing:path) => {
        #[cfg(feature = $feature)]
        pub use {
            $api as opentelemetry, $sdk as opentelemetry_sdk, $tracing as tracing_opentelemetry,
        };
    };
}

sdk!(
    "sdk-0.17",
    opentelemetry_0_17,
    opentelemetry_0_17::sdk,
    tracing_opentelemetry_for_0_17
);
sdk!(
    "sdk-0.18",
    opentelemetry_0_18,
    opentelemetry_sdk_0_18,
    tracing_opentelemetry_for_0_18
);
sdk!(
    "sdk-0.19",
    opentelemetry_0_19,
    opentelemetry_sdk_0_19,
    tracing_opentelemetry_for_0_19
);
sdk!(
    "sdk-0.20",
    opentelemetry_0_20,
    opentelemetry_sdk_0_20,
    tracing_opentelemetry_for_0_20
);
sdk!(
    "sdk-0.21",
    opentelemetry_0_21,
    opentelemetry_sdk_0_21,
    tracing_opentelemetry_for_0_21
);
sdk!(
    "sdk-0.22",
    opentelemetry_0_22,
    opentelemetry_sdk_0_22,
    tracing_opentelemetry_for_0_22
);
sdk!(
    "sdk-0.23",
    opentelemetry_0_23,
    opentelemetry_sdk_0_23,
    tracing_opentelemetry_for_0_23
);
sdk!(
    "sdk-0.24",
    opentelemetry_0_24,
    opentelemetry_sdk_0_24,
    tracing_opentelemetry_for_0_24
);
sdk!(
    "sdk-0.25",
    opentelemetry_0_25,
    opentelemetry_sdk_0_25,
    tracing_opentelemetry_for_0_25
);
sdk!(
    "sdk-0.26",
    opentelemetry_0_26,
    opentelemetry_sdk_0_26,
    tracing_opentelemetry_for_0_26
);
sdk!(
    "sdk-0.27",
    opentelemetry_0_27,
    opentelemetry_sdk_0_27,
    tracing_opentelemetry_for_0_27
);
sdk!(
    "sdk-0.28",
    opentelemetry_0_28,
    opentelemetry_sdk_0_28,
    tracing_opentelemetry_for_0_28
);
sdk!(
    "sdk-0.29",
    opentelemetry_0_29,
    opentelemetry_sdk_0_29,
    tracing_opentelemetry_for_0_29
);
sdk!(
    "sdk-0.30",
    opentelemetry_0_30,
    opentelemetry_sdk_0_30,
    tracing_opentelemetry_for_0_30
);
sdk!(
    "sdk-0.31",
    opentelemetry_0_31,
    opentelemetry_sdk_0_31,
    tracing_opentelemetry_for_0_31
);
sdk!(
    "sdk-0.32",
    opentelemetry_0_32,
    opentelemetry_sdk_0_32,
    tracing_opentelemetry_for_0_32
);
sdk!(
    "sdk-0.33",
    opentelemetry_0_33,
    opentelemetry_sdk_0_33,
    tracing_opentelemetry_for_0_33
);

#[cfg(not(feature = "to-0.27"))]
pub use opentelemetry_sdk::trace::SdkTracer;
/// The tracer's type, by its name since 0.28.
#[cfg(feature = "to-0.27")]
pub use opentelemetry_sdk::trace::Tracer as SdkTracer;
