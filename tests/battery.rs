//! The scenarios that hold on every transport and between transports, which a third party's transport is held to as well:
//! they are in the conformance kit.

chinwag_conformance::transport!(chinwag_conformance::Kit::builtin());
