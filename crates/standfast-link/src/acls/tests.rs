use super::*;

const APP: &str = "User:app";

fn acl(operation: AclOperation, pattern: AclPattern, name: &str) -> AclBinding {
    AclBinding::allow(APP, operation, AclResource::Topic, pattern, name)
}

fn write(name: &str) -> AclBinding {
    acl(AclOperation::Write, AclPattern::Literal, name)
}

struct World {
    filters: Vec<AclFilter>,
    mirrors: Vec<Arc<str>>,
    source: Option<Vec<AclBinding>>,
    destination: BTreeSet<AclBinding>,
    created: BTreeSet<AclBinding>,
    names: AclNames,
}

impl World {
    fn new(mirrors: &[&str], source: Vec<AclBinding>) -> Self {
        Self {
            filters: vec![AclFilter::default()],
            mirrors: mirrors.iter().map(|name| Arc::from(*name)).collect(),
            source: Some(source),
            destination: BTreeSet::new(),
            created: BTreeSet::new(),
            names: AclNames::default(),
        }
    }

    fn turn(&mut self) -> Plan {
        let plan = Plan::new(&Look {
            link: "we",
            names: &self.names,
            filters: &self.filters,
            mirrors: &self.mirrors,
            source: self.source.as_deref(),
            destination: &self.destination,
            created: &self.created,
        });
        self.destination.extend(plan.marks.iter().cloned());
        self.destination.retain(|acl| !plan.delete.contains(acl));
        self.destination.extend(plan.create.iter().cloned());
        self.created.extend(plan.create.iter().cloned());
        plan
    }

    fn real(&self) -> Vec<&AclBinding> {
        self.destination
            .iter()
            .filter(|acl| !acl.name.starts_with(MARK))
            .collect()
    }
}

#[test]
fn writing_is_withheld_until_the_mirror_is_stopped_and_then_released_without_the_source() {
    let read = acl(AclOperation::Read, AclPattern::Literal, "orders");
    let mut world = World::new(
        &["orders"],
        vec![write("orders"), read.clone(), write("free")],
    );
    let plan = world.turn();
    assert_eq!((plan.synced, plan.withheld), (2, 1));
    assert_eq!(
        world.real(),
        [&read, &write("free")]
            .into_iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    );
    assert_eq!(world.turn().create, vec![], "a second turn changes nothing");

    world.source = None;
    world.created.clear();
    world.mirrors.clear();
    world.turn();
    assert!(world.destination.contains(&write("orders")));

    // Mirrored again: it is known to be ours and is withdrawn.
    world.mirrors.push("orders".into());
    world.turn();
    assert!(!world.destination.contains(&write("orders")));
}

#[test]
fn prefixes_and_stars_are_withheld_while_they_cover_any_mirror() {
    let prefixed = acl(AclOperation::Write, AclPattern::Prefixed, "ord");
    let star = acl(AclOperation::All, AclPattern::Literal, "*");
    let mut world = World::new(&["orders"], vec![prefixed.clone(), star.clone()]);
    assert_eq!(world.turn().withheld, 2);
    let readable: Vec<AclOperation> = world.real().iter().map(|acl| acl.operation).collect();
    assert_eq!(
        readable,
        [AclOperation::Read, AclOperation::DescribeConfigs]
    );
    world.mirrors.clear();
    world.turn();
    assert_eq!(
        world.real(),
        [&star, &prefixed],
        "and nothing in place of ALL"
    );
}

#[test]
fn denials_are_carried_over() {
    let denied = AclBinding {
        permission: AclPermission::Deny,
        ..write("orders")
    };
    let mut world = World::new(&["orders"], vec![denied.clone()]);
    world.turn();
    assert_eq!(world.real(), [&denied]);
}

#[test]
fn the_destinations_own_acls_stay_unless_a_filter_owns_them() {
    let own = write("orders");
    let other = acl(AclOperation::Read, AclPattern::Literal, "local");
    let mut world = World::new(&["orders"], vec![own.clone()]);
    world.destination.extend([own.clone(), other.clone()]);
    world.turn();
    assert_eq!(world.real(), [&other, &own]);
    world.filters[0].owns = true;
    world.turn();
    assert_eq!(world.real(), [&other, &own], "owning needs a principal");
    world.filters[0].principal = Some(APP.to_owned());
    world.turn();
    assert_eq!(world.real(), [&own]);
}

#[test]
fn what_leaves_the_source_leaves_the_destination_if_it_came_from_there() {
    let read = acl(AclOperation::Read, AclPattern::Literal, "orders");
    let mut world = World::new(&[], vec![write("orders"), read]);
    world.turn();
    assert_eq!(world.real().len(), 2);
    world.source = Some(Vec::new());
    world.turn();
    assert!(world.destination.is_empty(), "{:?}", world.destination);
}

#[test]
fn filters_choose_by_kind_name_and_principal() {
    let group = AclBinding {
        resource: AclResource::Group,
        ..acl(AclOperation::Read, AclPattern::Literal, "orders-billing")
    };
    let cluster = AclBinding {
        resource: AclResource::Cluster,
        ..group.clone()
    };
    assert!(AclFilter::default().matches(&group) && !AclFilter::default().matches(&cluster));
    let filter = AclFilter {
        resource_type: Some(AclResourceType::Group),
        name: Some("orders".to_owned()),
        ..AclFilter::default()
    };
    assert!(!filter.matches(&group));
    let filter = AclFilter {
        pattern_type: Some(PatternType::Prefixed),
        ..filter
    };
    assert!(filter.matches(&group) && !filter.matches(&write("orders")));
    let stranger = AclFilter {
        principal: Some("User:other".to_owned()),
        ..AclFilter::default()
    };
    assert!(!stranger.matches(&group));
}
