//! The scenarios, and the list of them from which tests are made.

use futures_util::future::LocalBoxFuture;

use crate::{Gatekeeper, Kit};

mod abilities;
mod endings;
mod frames;
mod limits;
mod login;
mod messages;
mod plugins;
mod presence;
mod rooms;
mod verdicts;

type Scenario<T> = (&'static str, fn(&T) -> LocalBoxFuture<'_, ()>);

/// Makes the list of scenarios and, from the same names, the macro that makes a test of each. `$d` is a dollar sign, for
/// the inner macro.
macro_rules! scenarios {
    (
        $(#[$meta:meta])*
        $macro:ident($subject:ident: $type:ty), $run:ident, $list:ident, $d:tt
        $($module:ident { $($name:ident)+ })+
    ) => {
        const $list: &[Scenario<$type>] = &[$($((
            concat!(stringify!($module), "::", stringify!($name)),
            |subject| Box::pin($module::$name(subject)),
        ),)+)+];

        $(#[$meta])*
        #[macro_export]
        macro_rules! $macro {
            ($d $subject:expr) => {
                $(mod $module {
                    #[allow(unused_imports, reason = "what the expression below names")]
                    use super::*;

                    $(#[test]
                    fn $name() {
                        let name = concat!(stringify!($module), "::", stringify!($name));
                        $crate::$run(name, $d $subject);
                    })+
                })+
            };
        }
    };
}

scenarios! {
    /// Makes a test of each scenario for transports, for a [`Kit`]. In a module of its own, since it makes modules:
    ///
    /// ```
    /// mod battery {
    ///     chinwag_conformance::transport!(chinwag_conformance::Kit::builtin());
    /// }
    /// ```
    transport(kit: Kit), run_transport, TRANSPORTS, $
    login {
        a_guest_gets_a_session_with_the_limits_that_apply
        session_ids_are_long_and_never_the_same
        the_log_in_comes_first
        a_name_that_breaks_the_rules_is_refused_and_another_one_may_be_tried
        a_name_has_one_holder_whatever_its_case
        names_are_shown_in_the_configured_case
        unicode_names_are_one_name_where_they_look_alike
        fields_of_a_log_in_are_checked
        a_resume_of_an_unknown_session_is_not_logged_in
        a_resume_of_an_ended_session_says_how_it_ended
        a_resume_of_a_lost_session_says_that_it_was_lost
        a_password_lets_in_its_user_alone
        a_failed_log_in_reads_the_same_whatever_was_wrong
        a_connection_has_so_many_attempts
        guessing_a_name_s_password_becomes_slow
        a_second_log_in_of_an_identity_replaces_the_first
        a_second_log_in_may_be_refused_instead
        sessions_of_one_identity_may_live_side_by_side_as_one_member
        guests_beside_members_carry_their_prefix
        a_server_has_so_many_sessions
    }
    messages {
        a_message_reaches_every_member_and_its_sender
        the_answer_and_the_event_carry_the_same_number_and_time
        data_is_any_json
        unknown_fields_are_ignored
        line_feeds_and_tabs_are_kept_and_other_controls_refused
        a_message_says_something
        text_and_data_together_have_a_limit
        a_room_may_escape_html_and_says_so
        what_is_not_built_yet_is_refused_by_name
        pipelined_commands_are_answered_in_order
        numbers_ids_and_texts_come_back_as_they_were_sent
    }
    rooms {
        init_tells_the_room_before_the_joiner_and_the_join_follows
        joining_again_gives_a_fresh_init_and_nobody_sees_anything
        a_leaver_is_gone_before_the_others_are_told
        who_logs_out_leaves_every_room
        rooms_are_apart
        a_room_s_name_keeps_the_rules
        a_command_may_leave_out_the_default_room
        without_a_default_room_every_command_names_its_own
        rooms_may_be_the_configured_ones_alone
        a_session_is_in_so_many_rooms
        a_room_has_so_many_members
        at_the_cap_an_empty_room_makes_way_and_one_in_use_does_not
        new_rooms_have_a_rate
        users_come_in_pages_in_order_of_name
        members_agree_on_the_epoch
        an_empty_room_lingers_with_its_numbering
        a_room_that_does_not_linger_begins_anew_under_another_epoch
        nothing_is_recovered_yet_and_the_answer_says_so
    }
    presence {
        batched_presence_is_told_once_per_interval_outside_of_the_numbering
        presence_may_be_off
        who_comes_and_goes_within_an_interval_is_named_by_the_state_at_its_end
        a_room_that_grows_turns_to_batches_and_back_at_half
    }
    limits {
        sends_have_a_rate_and_the_refusal_says_when
        a_refused_send_comes_through_when_its_time_has_come
        a_room_has_a_rate_of_its_own
        a_user_has_a_rate_of_its_own
        commands_have_a_rate_and_a_logout_is_always_heard
        who_breaks_the_rules_too_often_is_ended
        who_breaks_the_rules_too_often_may_be_muted_instead
        a_ban_of_a_principal_keeps_it_out_and_nobody_else
        a_ban_of_a_guest_is_one_of_its_address
        an_address_that_guesses_becomes_slow
        a_listener_has_so_many_connections
    }
    frames {
        what_is_no_object_is_bad_json
        an_object_that_is_no_command_is_a_bad_request
        nesting_has_a_limit
        structure_is_judged_before_the_type_and_the_type_before_the_fields
        types_that_are_kept_for_later_are_unknown
        the_answer_to_a_bad_field_carries_the_id
    }
    endings {
        a_logout_is_answered_with_bye_and_the_name_is_free
        silence_ends_a_session_after_its_timeout
        the_session_says_its_own_timeout
        a_lost_connection_ends_its_session_at_once
        a_close_in_good_order_ends_the_session
        a_member_that_does_not_read_is_cut_and_the_others_lose_nothing
        a_drain_says_bye_to_everyone_after_what_was_accepted
        strangers_do_not_hold_up_a_drain
        who_is_changed_in_the_password_file_or_taken_out_of_it_is_logged_out
    }
    plugins {
        a_verdict_is_told_as_what_it_is
        an_outage_never_uses_up_the_attempts
        a_validator_may_change_a_message_or_refuse_it
    }
}

scenarios! {
    #[doc(hidden)]
    __verdicts(gatekeeper: dyn Gatekeeper), run_authenticator, VERDICTS, $
    verdicts {
        the_right_credentials_let_their_user_in
        wrong_credentials_are_refused_and_the_next_ones_judged_anew
        what_it_does_not_judge_is_left_to_the_next
        log_ins_at_the_same_time_are_not_mixed_up
        who_hangs_up_before_the_verdict_leaves_nothing_behind
        no_secret_is_logged_measured_or_answered
    }
}

/// For each ability makes the list of its scenarios and, from the same names, a macro that makes a test of each. These are
/// ignored where the ability is in the list of what is not there. `$d` is a dollar sign, for the inner macros.
macro_rules! abilities {
    ($d:tt $($macro:ident, $list:ident: $module:ident { $($name:ident)+ })+) => {
        $(
            const $list: &[Scenario<dyn Gatekeeper>] = &[$((
                concat!(stringify!($module), "::", stringify!($name)),
                |subject| Box::pin(abilities::$module::$name(subject)),
            ),)+];

            #[doc(hidden)]
            #[macro_export]
            macro_rules! $macro {
                ([$module = $d why:literal, $d($d rest:tt)*] $d subject:expr) => {
                    $crate::$macro!(@make [ignore = $d why] $d subject);
                };
                ([$d other:ident = $d why:literal, $d($d rest:tt)*] $d subject:expr) => {
                    $crate::$macro!([$d($d rest)*] $d subject);
                };
                ([] $d subject:expr) => {
                    $crate::$macro!(@make [] $d subject);
                };
                (@make [$d($d meta:meta)?] $d subject:expr) => {
                    mod $module {
                        #[allow(unused_imports, reason = "what the expression below names")]
                        use super::*;

                        $(#[test]
                        $d(#[$d meta])?
                        fn $name() {
                            let name = concat!(stringify!($module), "::", stringify!($name));
                            $crate::run_authenticator(name, $d subject);
                        })+
                    }
                };
            }
        )+

        /// The scenarios for authenticators.
        const AUTHENTICATORS: &[&[Scenario<dyn Gatekeeper>]] = &[VERDICTS, $($list,)+];
    };
}

abilities! { $
    __outages, OUTAGES: outages {
        an_outage_is_told_as_one_and_counts_against_nobody
        no_secret_is_told_of_in_an_outage
    }
    __silence, SILENCE: silence {
        a_silent_back_end_costs_those_who_ask_it_their_time_and_nobody_else
    }
    __removal, REMOVAL: removal {
        who_is_taken_out_is_logged_out_and_nobody_else
    }
    __expiry, EXPIRY: expiry {
        who_may_stay_for_a_while_is_logged_out_at_its_end_and_nobody_else
    }
    __rooms, ROOMS: rooms {
        who_may_enter_some_rooms_enters_no_others
    }
    __roles, ROLES: roles {
        a_role_opens_the_rooms_that_ask_for_it
    }
    __passwords, PASSWORDS: passwords {
        a_wrong_password_takes_as_long_as_an_unknown_user
        a_user_of_somebody_else_takes_as_long_as_an_unknown_one
    }
}

/// Makes a test of each scenario for authenticators, for a [`Gatekeeper`]. In a module of its own, since it makes modules.
/// After `without` stand the [`abilities`](crate::abilities) that the gatekeeper can't have, each with the reason: their
/// tests are ignored and show it.
#[macro_export]
macro_rules! authenticator {
    ($subject:expr $(, without $ability:ident = $why:literal)* $(,)?) => {
        $(#[allow(unused_imports, reason = "there is such an ability")]
        use $crate::abilities::$ability as _;)*
        $crate::__verdicts!($subject);
        $crate::__outages!([$($ability = $why,)*] $subject);
        $crate::__silence!([$($ability = $why,)*] $subject);
        $crate::__removal!([$($ability = $why,)*] $subject);
        $crate::__expiry!([$($ability = $why,)*] $subject);
        $crate::__rooms!([$($ability = $why,)*] $subject);
        $crate::__roles!([$($ability = $why,)*] $subject);
        $crate::__passwords!([$($ability = $why,)*] $subject);
    };
}

/// Plays the scenario of that name.
#[doc(hidden)]
#[expect(clippy::needless_pass_by_value, reason = "it is made for one scenario")]
pub fn run_transport(name: &str, kit: Kit) {
    run(&[TRANSPORTS], name, &kit);
}

/// Plays the scenario of that name.
#[doc(hidden)]
#[expect(clippy::needless_pass_by_value, reason = "it is made for one scenario")]
pub fn run_authenticator(name: &str, gatekeeper: impl Gatekeeper) {
    run(AUTHENTICATORS, name, &gatekeeper as &dyn Gatekeeper);
}

fn run<T: ?Sized>(scenarios: &[&[Scenario<T>]], name: &str, subject: &T) {
    let mut scenarios = scenarios.iter().copied().flatten();
    let found = scenarios.find(|(scenario, _)| *scenario == name);
    let (_, scenario) = found.expect("the macro has the same names");
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.enable_all().build();
    runtime
        .expect("threads can be had")
        .block_on(scenario(subject));
}
